"""Learner ranks as plain processes, without Ray: what a test runs in them, on any layout, in one start."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np

from klong_rl.buffer import WindowRef
from klong_rl.config import LearnerConfig
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from klong_rl.types import Window
from learners.job import LearnerJob


def learner_job(folder: Path | str = "", token_budget: int = 256, recompute: float = 0.0, **layout: int) -> LearnerJob:
    """Small micro-batches, and an eps for AdamW beside which rounding doesn't change a small gradient's direction."""
    learner = LearnerConfig(
        layout=LayoutConfig(**{"data": 1, **layout}),
        optimizer=OptimizerConfig(
            lr=1e-3,
            weight_decay=0.1,
            clip_grad=0.5,
            eps=1e-5,
            warmup_steps=2,
            decay="cosine",
            decay_steps=8,
            min_lr=1e-4,
        ),
        token_budget=token_budget,
        recompute=recompute,
    )
    return LearnerJob(str(folder), learner, collective_timeout_s=120.0)


def run_ranks(job: LearnerJob, work: Callable[..., Any], *args: Any, deadline_s: float = 240.0) -> list[Any]:
    """`work(job, rank, device, *args)` in every rank, once they are one group; the answers by rank.

    AssertionError with the traceback of the first rank that failed, or after the deadline.
    """
    context = multiprocessing.get_context("spawn")
    answers, ports = context.Queue(), context.Queue()
    ranks = [
        context.Process(target=_rank, args=(job, rank, ports, answers, work, args)) for rank in range(job.layout.world)
    ]
    for rank in ranks:
        rank.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < len(ranks):
            rank, failure, answer = answers.get(timeout=deadline_s)
            assert not failure, f"rank {rank} of {job.layout}:\n{failure}"
            found[rank] = answer
    except Empty as empty:
        raise AssertionError(f"{job.layout}: only ranks {sorted(found)} answered in {deadline_s:.0f} s") from empty
    finally:
        for rank in ranks:
            rank.kill() if len(found) < len(ranks) else rank.join()
    return [found[rank] for rank in range(len(ranks))]


def _rank(job: LearnerJob, rank: int, ports: Any, answers: Any, work: Callable[..., Any], args: tuple) -> None:
    if job.learner.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)  # as Ray gives each rank its own
    try:
        from learners import process

        store = process.open_store("127.0.0.1", job) if rank == 0 else None
        for _ in range(job.layout.world - 1 if store else 0):
            ports.put(store.port)
        store = store or process.connect_store(("127.0.0.1", ports.get(timeout=60)), job)
        answer = work(job, rank, process.join(job, rank, store), *args)
    except Exception:
        answers.put((rank, traceback.format_exc(), None))
    else:
        answers.put((rank, None, answer))


def made_windows(count: int, longest: int = 90, vocab_size: int = 512) -> list[Window]:
    """Windows of 20 to `longest` tokens, half of them targets, sampled by versions 0 and 1, with unlike advantages."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        length = int(rng.integers(20, longest))
        targets_T = (rng.random(length) < 0.5).astype(np.uint8)
        targets_T[0] = 0
        n_targets = int(targets_T.sum())
        made.append(
            Window(
                id=f"w{i}",
                episode="e",
                group="g",
                stage=1,
                targets_T=targets_T,
                # Not 0, padding in some models: transformers keeps its embedding from learning.
                tokens_T=rng.integers(1, vocab_size, length, dtype=np.int32),
                logprobs_T=(rng.normal(-6.2, 0.2, length) * targets_T).astype(np.float32),
                versions=((0, n_targets // 3), (1, n_targets - n_targets // 3)),
                advantage=float(rng.normal()),
            )  # fmt: skip
        )
    return made


def share_of(job: LearnerJob, windows: list[Window]) -> list[list[str]]:
    """The micro-batches of this rank."""
    from megatron.core import parallel_state

    from learners import batch

    refs = [WindowRef.of(window) for window in windows]
    plan = batch.plan(refs, job.layout.data, job.learner.token_budget, job.pad_to, job.window_pad)
    return plan[parallel_state.get_data_parallel_rank()]
