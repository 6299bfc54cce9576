"""What a GPU is used for, and how well: learner, rollout, publish and agreement, each beside its rival in one run.

    python -m benchmarks.gpu [--models NAME ...] [--parts learner engine] [--json OUT]

Needs one GPU with 80 GB; takes about four minutes a model. Each part runs in a process of its own, since Megatron and
vLLM hold what they have taken. `--json` gets the device, the versions and every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu import models

PACKAGES = ("torch", "vllm", "megatron-core", "transformer-engine", "ray", "transformers")
# [tokens of a row, of a window, rows of a step]; what is kept for the backward pass of a long row doesn't fit beside
# the state of a large model.
STEPS = {
    "smollm2-135m": [(8192, 2048, 8), (32_768, 4096, 2)],
    "qwen3-1.7b": [(8192, 2048, 4)],
}
BUDGETS = {"smollm2-135m": 32_768, "qwen3-1.7b": 4096}  # of the learner beside an engine


def learner_part(name: str, folder: Path) -> list[dict[str, Any]]:
    from benchmarks.gpu import learner

    return [in_child(learner.measure, name, folder, *step) for step in STEPS[name]]


def engine_part(name: str, folder: Path) -> dict[str, Any]:
    return in_child(_engine, name, folder, BUDGETS[name])


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(models.SHAPES), choices=list(models.SHAPES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "klong-gpu-models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"host": in_child(host)}
    for name in options.models:
        folder = in_child(models.build, name, options.folder)
        for part in options.parts:
            began = time.monotonic()
            results.setdefault(part, {})[name] = PARTS[part](name, folder)
            print(f"{part} of {name}, in {time.monotonic() - began:.0f} s:")
            print(json.dumps(results[part][name], indent=1), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
