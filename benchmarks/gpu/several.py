"""What two GPUs are used for: weights from one to the other, a learner on both, and the whole job with one for each.

    python -m benchmarks.gpu.several [--parts publish layouts job] [--model NAME] [--json OUT]

publish   seconds from the end of an optimizer step on one GPU to resumed generation on the other, under requests in
          flight; the floor is the weights' bytes over the link, by a plain copy from GPU to GPU beside it
layouts   the learner's step on one GPU and on two, each way of using both: tokens/s and MFU of the GPUs it has
job       the whole job of `cluster=split` for some minutes: its own figures, how busy each GPU is; with --kill the
          engine's process is killed in the middle
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import models
from benchmarks.gpu.machine import host, in_child
from benchmarks.gpu.whole_job import job

ENGINE_GPU, LEARNER_GPU = "0", "1"
REQUESTS, ANSWER, PUBLISHES = 64, 256, 5
DEADLINE_S = 60.0
STEPS = 3  # of each layout, after one that warms up
LAYOUTS: dict[str, dict[str, int]] = {
    "one GPU": {},
    "data=2": {"data": 2},
    "tensor=2": {"tensor": 2},
    "pipeline=2": {"pipeline": 2},
    "context=2": {"context": 2},
}


def publish(name: str, folder: Path, eager: bool) -> dict[str, Any]:
    """Learner and engine in processes of their own, each on its GPU."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    learner = context.Process(target=_learner, args=(theirs, folder))
    learner.start()
    try:
        return {"model": name} | in_child(_published, ours, folder, eager)
    finally:
        learner.kill()


def _learner(pipe: Any, folder: Path) -> None:
    """Trains and publishes as it is told: what was published, and when the step before it ended."""
    os.environ["CUDA_VISIBLE_DEVICES"] = LEARNER_GPU
    import torch

    from benchmarks.gpu.learner import make_windows, start_rank
    from benchmarks.gpu.publishing import share_of
    from learners.link import LinkedWeights

    rank = start_rank(folder, 4096)
    rank._weights = LinkedWeights(DEADLINE_S)
    share, given = share_of(rank, make_windows(4, 1024, 512))
    while True:
        version = pipe.recv()
        rank.sft_step(share, given)
        torch.cuda.synchronize()
        trained = time.monotonic()
        weights = rank.publish(version)
        pipe.send((weights, trained, time.monotonic()))


def _published(pipe: Any, folder: Path, eager: bool) -> dict[str, Any]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ENGINE_GPU
    return asyncio.run(_publishes(pipe, folder, eager))


async def _publishes(pipe: Any, folder: Path, eager: bool) -> dict[str, Any]:
    import numpy as np

    from actors.engine import Engine
    from klong_rl.chat import ChatFormat
    from klong_rl.config import EngineConfig
    from klong_rl.gpu_memory import BYTES

    config = EngineConfig(
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=REQUESTS,
        enforce_eager=eager,
        weight_transfer="network",
        transfer_timeout_s=DEADLINE_S,
        gpu_memory=0.4,
        # Enough for the requests, and named so that vLLM doesn't measure what is left of the GPU.
        extra={"attention_backend": "FLASH_ATTN", "kv_cache_memory_bytes": 16 << 30},
    )
    engine = await Engine.start(config, str(folder), ChatFormat(folder).end_id, version=0, seed=0)
    rng, rows = np.random.default_rng(0), []
    try:
        for version in range(1, PUBLISHES + 1):
            prompts = [rng.integers(5, 512, 64).astype(np.int32) for _ in range(REQUESTS)]
            requests = [asyncio.create_task(engine.sample(prompt, ANSWER, 1.0)) for prompt in prompts]
            await asyncio.sleep(0.5)
            pipe.send(version)
            weights, trained, staged = await asyncio.to_thread(pipe.recv)
            paused = (await engine.publish(weights, version))["paused_s"]
            resumed = time.monotonic()
            samples = await asyncio.gather(*requests)
            rows.append((resumed - trained, staged - trained, paused, sum(len(s.versions) > 1 for s in samples)))
    finally:
        engine.shutdown()
    sizes = [BYTES[d] * int(np.prod(s)) for d, s in zip(weights["dtype_names"], weights["shapes"], strict=True)]
    bandwidth = in_child(_link_bandwidth, sum(sizes))
    return {
        "bytes": sum(sizes),
        "first_s": round(rows[0][0], 3),  # the group is made in it
        "total_s": [round(row[0], 4) for row in rows[1:]],
        "staged_s": [round(row[1], 4) for row in rows[1:]],
        "paused_s": [round(row[2], 4) for row in rows[1:]],
        "median_s": round(statistics.median(row[0] for row in rows[1:]), 4),
        "link_gb_per_s": round(bandwidth / 1e9, 1),
        "floor_s": round(sum(sizes) / bandwidth, 4),
        "requests": REQUESTS * PUBLISHES,
        "requests_of_two_versions": sum(row[3] for row in rows),
    }


def _link_bandwidth(size: int) -> float:
    """Bytes a second of a plain copy from the learner's GPU to the engine's."""
    os.environ["CUDA_VISIBLE_DEVICES"] = f"{ENGINE_GPU},{LEARNER_GPU}"
    import torch

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda:1")
    target = torch.empty(size, dtype=torch.uint8, device="cuda:0")
    rates = []
    for _ in range(6):
        torch.cuda.synchronize("cuda:0"), torch.cuda.synchronize("cuda:1")
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize("cuda:0"), torch.cuda.synchronize("cuda:1")
        rates.append(size / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def layouts(name: str, folder: Path, row: int, window: int) -> dict[str, Any]:
    """Every layout with 4 rows of `row` tokens; two GPUs do in one step what one does."""
    import ray

    from benchmarks.gpu.learner import PEAK_TFLOPS

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    found: dict[str, Any] = {"model": name, "row": row, "window": window}
    try:
        for label, layout in LAYOUTS.items():
            seconds = _steps(folder, row, window, layout)
            if isinstance(seconds, str):
                found[label] = {"failed": seconds}
                continue
            gpus = max(1, 2 * len(layout))
            rate = 4 * row / statistics.median(seconds)
            tflops = rate * models.flops_per_token(name, window) / 1e12
            found[label] = {
                "seconds": [round(s, 4) for s in seconds],
                "tokens_per_s": round(rate),
                "mfu": round(tflops / PEAK_TFLOPS / gpus, 3),
            }
            print(f"{label}: {found[label]}", flush=True)
    finally:
        ray.shutdown()
    return found


def _steps(folder: Path, row: int, window: int, layout: dict[str, int]) -> list[float] | str:
    """Seconds of each step, or what went wrong."""
    from benchmarks.gpu.learner import make_windows
    from klong_rl.config import LearnerConfig
    from klong_rl.errors import LearnerFailure
    from klong_rl.learner_config import LayoutConfig, OptimizerConfig
    from learners.group import LearnerGroup
    from learners.job import LearnerJob
    from learners.link import LinkedWeights

    learner = LearnerConfig(
        layout=LayoutConfig(**{"data": 1, **layout}),
        optimizer=OptimizerConfig(lr=1e-6),
        device="cuda",
        dtype="bfloat16",
        num_gpus=1,
        token_budget=row,
        recompute=row > 16_384,
    )
    windows = make_windows(4 * row // window, window, 512)
    try:
        group = LearnerGroup(LearnerJob(str(folder), learner), LinkedWeights(DEADLINE_S), call_deadline_s=120)
    except LearnerFailure as failure:
        return str(failure)
    try:
        return [group.sft_step(windows)["step_s"] for _ in range(1 + STEPS)][1:]
    except LearnerFailure as failure:
        return str(failure)
    finally:
        group.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["publish", "layouts", "job"])
    parser.add_argument("--model", default="qwen3-1.7b", choices=list(models.SHAPES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "klong-gpu-models")
    parser.add_argument("--row", type=int, default=8192)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument(
        "--eager", action="store_true", help="no CUDA graphs: the engine starts faster and samples slower"
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="of the job")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument(
        "--job", nargs="*", default=["model=smollm2", "sandbox.kind=process", "sandbox.allow_unisolated=true"]
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], Any]] = {
        "publish": lambda folder: publish(options.model, folder, options.eager),
        "layouts": lambda folder: layouts(options.model, folder, options.row, options.window),
        "job": lambda folder: job(options.job, options.seconds, options.kill),
    }
    results: dict[str, Any] = {"host": in_child(host)}
    folder = in_child(models.build, options.model, options.folder) if set(options.parts) - {"job"} else Path()
    for name in options.parts:
        results[name] = parts[name](folder)
        print(f"{name}: {json.dumps(results[name], indent=1)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
