"""What is measured of each model, every measurement in a process of its own: Megatron and vLLM keep what they take."""

from __future__ import annotations

import asyncio
import multiprocessing
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "vllm", "megatron-core", "transformer-engine", "ray", "transformers")
# [tokens of a row, of a window, rows of a step, recompute]: a large model's state leaves no room for what a long row
# keeps for its backward pass.
STEPS = {
    "smollm2-135m": [(8192, 2048, 8, False), (32_768, 4096, 2, False)],
    "qwen3-1.7b": [(8192, 2048, 4, False), (32_768, 4096, 1, True)],
}
BUDGETS = {"smollm2-135m": 16_384, "qwen3-1.7b": 2048}  # of the learner beside an engine


def learner_part(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    from benchmarks.gpu import learner

    for step in STEPS[name]:
        yield in_child(learner.measure, name, folder, *step)


def engine_part(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    yield in_child(_engine, name, folder, BUDGETS[name])


def _engine(name: str, folder: Path, token_budget: int) -> dict[str, Any]:
    from benchmarks.gpu import engine

    return asyncio.run(engine.measure(name, folder, token_budget))


PARTS = {"learner": learner_part, "engine": engine_part}


def in_child(call: Callable[..., Any], *args: Any) -> Any:
    """What `call` returns, in a fresh process; its error if it fails."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        return child.submit(call, *args).result()


def host() -> dict[str, str]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name(0),
        "memory_gib": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.1f}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{package: version(package) for package in PACKAGES},
    }
