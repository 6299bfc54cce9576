"""Publish and agreement: an engine and a learner on one GPU, as `cluster=one_gpu` sets them up.

publish   from the learner's export to resumed generation, under 64 requests in flight, phase by phase; the floor is
          the bytes to be copied (learner to staging, staging to engine) over the copy bandwidth measured beside it
gap       |learner - engine| of log-probs with both sides in bfloat16: of tokens as they were sampled (decode), and
          scored again (prefill); and of tokens that older weights sampled, 1 to 4 updates on
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from actors.engine import Engine
from klong_rl.buffer import WindowRef
from klong_rl.types import Window
from learners import batch

IN_FLIGHT = 512  # tokens of an answer that a publish comes in the middle of
PUBLISHES = 6
UPDATES = 4  # without a publish: how stale a token may get
CAP = 2.0  # of an importance weight, truncated


def share_of(rank: Any, windows: list[Window]) -> tuple[list[list[str]], dict[str, Window]]:
    """What a rank of one is given to train on, and the windows by id."""
    given = {window.id: window for window in windows}
    budget = rank._job.learner.token_budget
    return batch.plan([WindowRef.of(w) for w in windows], 1, budget, rank._job.pad_to)[0], given


def learner_logprobs(rank: Any, windows: list[Window]) -> np.ndarray:
    """Of all targets, in the order of `windows`."""
    answer = rank.logprobs(1.0, *share_of(rank, windows))
    return np.concatenate([answer[window.id][window.targets_T == 1] for window in windows])


def sampled_logprobs(windows: list[Window]) -> np.ndarray:
    return np.concatenate([window.logprobs_T[window.targets_T == 1] for window in windows])


async def scored_logprobs(engine: Engine, windows: list[Window]) -> np.ndarray:
    """The same tokens under the engine's weights of now."""
    theirs = await asyncio.gather(*(engine.logprobs(window.tokens_T) for window in windows))
    return np.concatenate([their[window.targets_T[1:] == 1] for window, their in zip(windows, theirs, strict=True)])


def gap(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Of |ours - theirs|, in nats; what truncated importance sampling makes of the ratios exp(ours - theirs)."""
    difference = np.abs(ours - theirs)
    ratios = np.exp((ours - theirs).astype(np.float64))
    capped = np.minimum(ratios, CAP)
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 10.0, 41)])
    return {
        "tokens": difference.size,
        "mean": round(float(difference.mean()), 5),
        **{f"p{q:g}": round(float(np.percentile(difference, q)), 4) for q in (50, 90, 99, 99.9)},
        "max": round(float(difference.max()), 4),
        "histogram": {
            "edges": [round(float(e), 6) for e in edges],
            "counts": np.histogram(difference, edges)[0].tolist(),
        },
        "ratio_max": round(float(ratios.max()), 3),
        "ratio_mean": round(float(ratios.mean()), 4),
        "ratio_mean_truncated": round(float(capped.mean()), 4),
        "truncated_share": round(float((ratios > CAP).mean()), 5),
        "ess_fraction": round(float(ratios.mean() ** 2 / (ratios**2).mean()), 4),
        "ess_fraction_truncated": round(float(capped.mean() ** 2 / (capped**2).mean()), 4),
    }


def advantages(windows: list[Window]) -> list[Window]:
    """Every other window is a good one."""
    return [replace(window, advantage=1.0 if number % 2 else -1.0) for number, window in enumerate(windows)]


async def agreement(engine: Engine, rank: Any, windows: list[Window]) -> dict[str, Any]:
    """Engine and learner hold the same weights when this begins; the learner is `UPDATES` ahead when it ends."""
    theirs, ours = sampled_logprobs(windows), learner_logprobs(rank, windows)
    result = {"decode": gap(ours, theirs), "prefill": gap(ours, await scored_logprobs(engine, windows)), "stale": {}}
    share, given = share_of(rank, advantages(windows))
    for update in range(1, UPDATES + 1):
        rank.train_step(update, update - 1, share, given)
        result["stale"][update] = gap(learner_logprobs(rank, windows), theirs)
    return result


async def publish(engine: Engine, rank: Any, windows: list[Window]) -> dict[str, Any]:
    """Seconds of each phase, under requests in flight, of which none may end early."""
    share, given = share_of(rank, windows)
    prompts = [window.tokens_T[:64] for window in windows]
    seen: list[dict[str, float]] = []
    runs, stopped, changes = [], 0, []
    for version in range(1, PUBLISHES + 1):
        before = await engine.logprobs(windows[0].tokens_T)
        requests = [asyncio.create_task(engine.sample(prompt, IN_FLIGHT, 1.0)) for prompt in prompts]
        await asyncio.sleep(0.5)
        rank.sft_step(share, given)
        torch.cuda.synchronize()
        began = time.perf_counter()
        weights = rank.publish(version)
        exported = time.perf_counter()
        phases = await engine.publish(weights, version)
        seen.append({"total_s": time.perf_counter() - began, "export_s": exported - began, **phases})
        samples = await asyncio.gather(*requests)
        runs += [len(sample.versions) for sample in samples]
        stopped += sum(sample.finish == "stop" for sample in samples)
        changes.append(float(np.abs(await engine.logprobs(windows[0].tokens_T) - before).max()))
    size = sum(tensor.numel() * tensor.element_size() for tensor in rank._weights._copies[0].values())
    bandwidth = copy_bandwidth(size)
    return {
        "bytes": size,
        "tensors": len(rank._weights._copies[0]),
        "publishes": [{name: round(s, 4) for name, s in phases.items()} for phases in seen],
        "median_s": round(statistics.median(phases["total_s"] for phases in seen[1:]), 4),
        "largest_s": round(max(phases["total_s"] for phases in seen[1:]), 4),
        "floor_s": round(2 * size / bandwidth, 5),
        "copy_gb_per_s": round(bandwidth / 1e9),
        "requests": len(runs),
        "requests_aborted": 0,  # Engine.sample raises for one that is
        "requests_that_sampled_the_end": stopped,
        "requests_of_two_versions": sum(count > 1 for count in runs),
        "smallest_change_of_a_logprob_s_maximum": round(min(changes), 4),
        "gap_after": gap(learner_logprobs(rank, windows), await scored_logprobs(engine, windows)),
    }


def copy_bandwidth(size: int) -> float:
    """Bytes copied a second, device to device, of a tensor of `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * size / (time.perf_counter() - began)
