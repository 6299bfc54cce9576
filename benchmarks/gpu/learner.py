"""The learner's step beside a bare Megatron-core loop: one model, one batch, one packing, in turns, in one process.

bare        Megatron's schedule over the same packed rows, its own cross-entropy on all tokens, the optimizer's step
bare, fused the same with Transformer Engine's fused cross-entropy
ours        Rank.sft_step: windows packed and copied to the GPU, log-probs, objective, metrics; half of the tokens are
            targets, as in an episode whose actions are as long as what answers them
ours, all   the same with every token a target

Memory is the allocator's peak over our steps, beside what klong_rl.gpu_memory adds up before anything loads.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.turns import Turns
from klong_rl import gpu_memory
from klong_rl.buffer import WindowRef
from klong_rl.config import LearnerConfig
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from klong_rl.types import Window
from learners import batch, forward, model, process
from learners.job import LearnerJob
from learners.publish import GpuWeights
from learners.rank import Rank

WARM_UP, REPEATS = 2, 4
TURN = 512  # tokens of an action and its observation
PEAK_TFLOPS = 989.4  # bf16, dense, of an H100 or H200 SXM by NVIDIA's data sheet


@dataclass(frozen=True)
class Step:
    """`rows` micro-batches of `row` tokens, in windows of `window`; `recompute` as learner.recompute."""

    row: int
    window: int
    rows: int
    recompute: float = 0.0


def measure(turns: Turns, name: str, folder: Path, steps: list[Step]) -> None:
    """Every step of `steps`, one after the other; what is known is written after each."""
    results: list[dict[str, Any]] = []
    import mbridge  # noqa: F401  takes Megatron and Transformer Engine along: seconds that no turn should pay

    with turns.alone(is_last=True):
        rank = start_rank(folder, steps[0].row, recompute=steps[0].recompute)
        for number, step in enumerate(steps):
            if number:
                _rebuild(rank, step)
            results.append(_measure(rank, name, folder, step))
            turns.write(results)


def start_rank(
    folder: Path, token_budget: int, gpu_memory_share: float = 0.9, lr: float = 1e-6, **settings: Any
) -> Rank:
    """A learner of one rank in this process, on its GPU."""
    learner = LearnerConfig(
        layout=LayoutConfig(data=1),
        optimizer=OptimizerConfig(lr=lr),
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


def _rebuild(rank: Rank, step: Step) -> None:
    """The same model for another row, in the process group that is there."""
    wanted = replace(rank._job.learner, token_budget=step.row, recompute=step.recompute)
    rank._job, rank._model = replace(rank._job, learner=wanted), None
    gc.collect()
    torch.cuda.empty_cache()
    rank._model = model.build(rank._job)


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


def _measure(rank: Rank, name: str, folder: Path, step: Step) -> dict[str, Any]:
    """Seconds, tokens/s, TFLOP/s and MFU of each side, and memory."""
    sides, refused = _sides(rank, step), {}
    torch.cuda.reset_peak_memory_stats()
    peak = 0
    for side, take in list(sides.items()):
        try:
            for _ in range(WARM_UP):
                take()
        except RuntimeError as error:  # a rival may need more memory than there is
            refused[side] = f"{error}"[:200]
            del sides[side]
        if side.startswith("ours"):
            peak = torch.cuda.max_memory_allocated()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(REPEATS):
        for side, take in sides.items():
            seconds[side].append(timed(take))
    tokens = step.rows * step.row
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    return {
        "model": name,
        **vars(step),
        **{side: _rates(times, tokens, name, step.window) for side, times in seconds.items()},
        "over_bare": {
            f"{ours} over {bare}": round(medians[bare] / medians[ours], 3)
            for ours in medians
            if ours.startswith("ours")
            for bare in medians
            if bare.startswith("bare")
        },
        "refused": refused,
        "launches_of_ours": launches(sides["ours"]),
        "memory": memory(folder, rank._job.learner, peak),
    }


def _sides(rank: Rank, step: Step) -> dict[str, Callable[[], Any]]:
    """In the order in which they take turns; ours first, so that the peak of memory is theirs."""
    count = step.rows * step.row // step.window
    half, whole = ({w.id: w for w in make_windows(count, step.window, turn)} for turn in (TURN, None))
    share = batch.plan([WindowRef.of(w) for w in half.values()], 1, step.row, rank._job.pad_to)[0]
    packed = [forward.Batch([whole[i] for i in ids], rank._job.pad_to, rank._device) for ids in share]
    return {
        "ours": lambda: rank.sft_step(share, half),
        "ours, all": lambda: rank.sft_step(share, whole),
        "bare": lambda: bare_step(rank._model, packed, fused=False),
        "bare, fused": lambda: bare_step(rank._model, packed, fused=True),
    }


def _rates(seconds: list[float], tokens: int, name: str, window: int) -> dict[str, Any]:
    rate = tokens / statistics.median(seconds)
    tflops = rate * models.flops_per_token(name, window) / 1e12
    return {
        "seconds": [round(s, 4) for s in seconds],
        "tokens_per_s": round(rate),
        "tflops": round(tflops, 1),
        "mfu": round(tflops / PEAK_TFLOPS, 3),
    }


def memory(folder: Path, learner: LearnerConfig, peak: int, published: bool = False) -> dict[str, Any]:
    """The allocator's peak beside the sum of the pre-flight, in GiB; nothing is published in a bare step."""
    parts: Mapping[str, int] = gpu_memory.learner_bytes(gpu_memory.ModelShape.read(folder), learner)
    parts = {what: size for what, size in parts.items() if published or what != "published copies"}
    predicted = sum(parts.values())
    return {
        "peak_gib": round(peak / gpu_memory.GIB, 2),
        "predicted_gib": round(predicted / gpu_memory.GIB, 2),
        "peak_over_predicted": round(peak / predicted, 3),
        "parts_gib": {what: round(size / gpu_memory.GIB, 2) for what, size in parts.items()},
    }


def launches(take: Callable[[], Any]) -> dict[str, float]:
    """Kernels of one step, and how long they run together; profiled, so the step itself takes longer."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        take()
        torch.cuda.synchronize()
    averages = seen.key_averages()
    largest = sorted(averages, key=lambda entry: -entry.self_device_time_total)[:12]
    return {
        "kernels": sum(entry.count for entry in averages),
        "gpu_s": round(sum(entry.self_device_time_total for entry in averages) / 1e6, 4),
        "largest_ms": {entry.key[:80]: round(entry.self_device_time_total / 1e3, 1) for entry in largest},
    }


def bare_step(learner: model.Model, packed: list[forward.Batch], fused: bool) -> None:
    """One step as a Megatron-core script would take it."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(batches: Any, chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        row = next(batches)
        labels_1R = row.tokens_R.roll(-1)[None]
        loss_1R = chunk(
            row.tokens_R[None], row.positions_R[None], None, labels=labels_1R, packed_seq_params=row.packing
        )
        tokens = torch.full((), loss_1R.numel(), dtype=torch.int, device=loss_1R.device)
        return loss_1R, lambda loss: (loss.float().sum(), tokens, {"loss": loss.detach().float().mean()})

    for chunk in learner.unwrapped():
        chunk.config.cross_entropy_loss_fusion, chunk.config.cross_entropy_fusion_impl = fused, "te"
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
