"""The machine that a benchmark ran on, and calls in processes of their own, which end with their GPU memory."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

PACKAGES = ("torch", "vllm", "megatron-core", "transformer-engine", "ray", "transformers")


def in_child(call: Callable[..., Any], *args: Any) -> Any:
    """What `call` returns, in a fresh process; its error if it fails."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        return child.submit(call, *args).result()


def host() -> dict[str, Any]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name(0),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{package: version(package) for package in PACKAGES},
    }
