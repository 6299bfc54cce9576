"""The learner's step beside a bare Megatron-core loop: one model, one batch, one packing, in turns, in one process.

bare        Megatron's schedule over the same packed rows, its own cross-entropy on all tokens, the optimizer's step
ours        Rank.sft_step: windows packed and copied to the GPU, log-probs, objective, metrics; half of the tokens are
            targets, as in an episode whose actions are as long as what answers them
ours, all   the same with every token a target

Memory is the allocator's peak over our steps, beside what klong_rl.gpu_memory adds up before anything loads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from klong_rl import gpu_memory
from klong_rl.buffer import WindowRef
from klong_rl.config import LayoutConfig, LearnerConfig, OptimizerConfig
from klong_rl.types import Window
from learners import batch, forward, model, process
from learners.job import LearnerJob
from learners.publish import GpuWeights
from learners.rank import Rank

WARM_UP, REPEATS = 2, 4
TURN = 512  # tokens of an action and its observation
PEAK_TFLOPS = 989.4  # bf16, dense, of an H100 or H200 SXM by NVIDIA's data sheet


def start_rank(folder: Path, token_budget: int, gpu_memory_share: float = 0.9, **settings: Any) -> Rank:
    """A learner of one rank in this process, on its GPU."""
    learner = LearnerConfig(
        layout=LayoutConfig(data=1),
        optimizer=OptimizerConfig(lr=1e-6),
        objective_options={"kl_coefficient": 0.0},
        device="cuda",
        dtype="bfloat16",
        gpu_memory=gpu_memory_share,
        token_budget=token_budget,
        **settings,
    )
    job = LearnerJob(str(folder), learner)
    rank = Rank(0, job, GpuWeights())
    rank._store = process.open_store("127.0.0.1", job)
    rank.setup(("127.0.0.1", rank._store.port))
    return rank


def make_windows(count: int, length: int, turn: int | None) -> list[Window]:
    """`count` windows; of each `turn` tokens the second half are targets, or all of them but the window's first."""
    rng = np.random.default_rng(0)
    targets_T = np.ones(length, np.uint8) if turn is None else (np.arange(length) % turn >= turn // 2).astype(np.uint8)
    targets_T[0] = 0
    return [
        Window(
            id=f"w{i}",
            episode="e",
            group="g",
            stage=0,
            tokens_T=rng.integers(1, 512, length, dtype=np.int32),
            targets_T=targets_T,
            logprobs_T=np.zeros(length, np.float32),
            versions=((0, int(targets_T.sum())),),
        )
        for i in range(count)
    ]


def measure(name: str, folder: Path, row: int, window: int, rows: int, recompute: bool) -> dict[str, Any]:
    """Seconds, tokens/s, TFLOP/s and MFU of both, and memory. A step is `rows` micro-batches of `row` tokens."""
    rank = start_rank(folder, row, recompute=recompute)
    half, whole = ({w.id: w for w in make_windows(rows * row // window, window, turn)} for turn in (TURN, None))
    share = batch.plan([WindowRef.of(w) for w in half.values()], 1, row, rank._job.pad_to)[0]
    packed = [forward.Batch([whole[i] for i in ids], rank._job.pad_to, rank._device) for ids in share]
    torch.cuda.reset_peak_memory_stats()
    sides = {
        "ours": lambda: rank.sft_step(share, half),
        "ours, all": lambda: rank.sft_step(share, whole),
        "bare": lambda: bare_step(rank._model, packed),
    }
    for step in sides.values():
        for _ in range(WARM_UP):
            step()
        if step is sides["ours, all"]:
            peak = torch.cuda.max_memory_allocated()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(REPEATS):
        for side, step in sides.items():
            seconds[side].append(timed(step))
    shape = gpu_memory.ModelShape.read(folder)
    parts = gpu_memory.learner_bytes(shape, rank._job.learner)
    parts.pop("published copies")  # nothing is published here
    result = {"model": name, "row": row, "window": window, "rows": rows, "recompute": recompute}
    for side, times in seconds.items():
        median = statistics.median(times)
        rate = rows * row / median
        tflops = rate * models.flops_per_token(name, window) / 1e12
        result[side] = {
            "seconds": [round(t, 4) for t in times],
            "tokens_per_s": round(rate),
            "tflops": round(tflops, 1),
            "mfu": round(tflops / PEAK_TFLOPS, 3),
        }
    bare = statistics.median(seconds["bare"])
    result["ours_over_bare"] = round(bare / statistics.median(seconds["ours"]), 3)
    result["ours_all_over_bare"] = round(bare / statistics.median(seconds["ours, all"]), 3)
    result["peak_gib"] = round(peak / gpu_memory.GIB, 2)
    result["predicted_gib"] = round(sum(parts.values()) / gpu_memory.GIB, 2)
    result["predicted_parts_gib"] = {what: round(size / gpu_memory.GIB, 2) for what, size in parts.items()}
    return result


def bare_step(learner: model.Model, packed: list[forward.Batch]) -> None:
    """One step as a Megatron-core script would take it."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(batches: Any, chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        row = next(batches)
        labels_1R = row.tokens_R.roll(-1)[None]
        loss_1R = chunk(
            row.tokens_R[None], row.positions_R[None], None, labels=labels_1R, packed_seq_params=row.packing
        )
        tokens = torch.tensor(loss_1R.numel(), dtype=torch.int, device=loss_1R.device)
        return loss_1R, lambda loss: (loss.float().sum(), tokens, {"loss": loss.detach().float().mean()})

    for chunk in learner.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    learner.optimizer.zero_grad()
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(packed),
        model=learner.chunks,
        num_microbatches=len(packed),
        seq_length=len(packed[0].tokens_R),
        micro_batch_size=1,
        forward_only=False,
    )
    learner.optimizer.step()


def timed(step: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began
