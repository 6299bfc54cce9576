"""A learner as one object: R ranks as Ray actors, called together.

    LearnerGroup.train_step ──plan──▶ Rank 0..R-1 (fetch, forward, backward, update) ──merge──▶ metrics

Each call waits for every rank until its deadline. The first rank that fails ends the call with `LearnerFailure`, and
the group: the other ranks are killed, since they may wait in a collective for the one that is gone. The way on is a new
group that loads the last checkpoint. Calls block; from a coroutine use `asyncio.to_thread`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from klong_rl.buffer import BufferAddress, WindowRef
from klong_rl.errors import LearnerFailure
from klong_rl.types import Window
from learners import batch
from learners.job import LearnerJob
from learners.model import check
from learners.publish import Published, Weights
from learners.rank import Rank
from learners.step import merge

log = logging.getLogger(__name__)

# After one rank failed, how long the others may take to tell why they did: a lost peer is seen within it.
BLAME_S = 5.0
RELEASE_S = 10.0  # for Ray to free the placement group


class LearnerGroup:
    """Ranks in a placement group, with the model loaded once `__init__` returns."""

    def __init__(
        self,
        job: LearnerJob,
        weights: Weights,
        buffer: BufferAddress | None = None,
        *,
        setup_deadline_s: float = 600.0,
        call_deadline_s: float = 3600.0,
    ):
        """Raises UserError for a layout that doesn't fit the model, LearnerFailure if a rank isn't up in time."""
        check(job)
        self._job, self._deadline_s = job, call_deadline_s
        until = time.monotonic() + setup_deadline_s
        self._bundles = self._reserve(setup_deadline_s)
        self._ranks = [self._start(rank, weights, buffer) for rank in range(job.layout.world)]
        (address,) = self._call("open_store", [()], until - time.monotonic())
        self._data_ranks = self._call("setup", [(address,)] * len(self._ranks), until - time.monotonic())

    def train_step(
        self, step: int, version: int, refs: Sequence[WindowRef], windows: Sequence[Window] | None = None
    ) -> dict[str, float]:
        """One optimizer step of the objective on `refs`; the ranks fetch the windows unless they are given.

        `version` is the policy version of the weights before the step. Returns loss, grad_norm, learning_rate, tokens,
        windows, action_tokens; entropy_estimate, what the objective reports (docs/objectives.md); |learner - sampler|
        of log-probs over the tokens that `version` sampled, before the update (logprob_gap_mean, _max, _tokens);
        seconds: step_s in all, and of the slowest rank fetch_s, forward_backward_s, optimizer_s.
        """
        return self._step("train_step", (step, version), refs, windows)

    def sft_step(self, windows: Sequence[Window]) -> dict[str, float]:
        """One optimizer step of supervised fine-tuning."""
        return self._step("sft_step", (), [WindowRef.of(window) for window in windows], windows)

    def logprobs(
        self, refs: Sequence[WindowRef], windows: Sequence[Window] | None = None, temperature: float | None = None
    ) -> dict[str, np.ndarray]:
        """Log-prob of each target token by window id, float32 [T], aligned with `tokens_T`, 0.0 elsewhere.

        At the sampler's temperature unless another is given.
        """
        temperature = self._job.temperature if temperature is None else temperature
        parts = self._call("logprobs", self._shares((temperature,), refs, windows))
        return {window: logprobs for part in parts for window, logprobs in part.items()}

    def publish(self, version: int) -> Published:
        """Make the weights, as `version`, readable for the engines of this host; returns what they are told."""
        return self._call_all("publish", version)[0]

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        self._call_all("save_hf", folder)

    def begin_save(self, folder: Path) -> None:
        """Begin to write a checkpoint, FOLDER/megatron, and the weights beside it, FOLDER/hf, as they are now.

        The ranks write beside what they are called for next. One at a time: `finish_save` comes before another.
        """
        self._call_all("begin_save", folder)

    def finish_save(self, wait: bool = True) -> bool:
        """Whether what was begun is all written; `wait` until it is. LearnerFailure names a folder that can't be."""
        return self._call_all("finish_save", wait)[0]

    def load(self, folder: Path) -> int:
        """Load a checkpoint; returns the step it was saved after."""
        return self._call_all("load", folder)[0]

    def shutdown(self) -> None:
        """End the ranks, whatever they are doing. The published weights are the caller's to remove."""
        self._release()

    def pids(self) -> list[int]:
        """Process id of each rank, for whoever watches or kills them."""
        return self._call_all("pid")

    def _step(
        self, method: str, head: tuple, refs: Sequence[WindowRef], windows: Sequence[Window] | None
    ) -> dict[str, float]:
        if not refs:
            raise ValueError(f"{method} was given no windows")
        started = time.perf_counter()
        metrics = merge(self._call(method, self._shares(head, refs, windows)))
        metrics["step_s"] = time.perf_counter() - started
        metrics["tokens"] = float(sum(ref.n_tokens for ref in refs))
        return metrics

    def _shares(self, head: tuple, refs: Sequence[WindowRef], windows: Sequence[Window] | None) -> list[tuple]:
        """The arguments of each rank: `head`, its micro-batches, and its windows if they are given."""
        job = self._job
        plan = batch.plan(refs, job.layout.data, job.learner.token_budget, job.pad_to, job.window_pad)
        given = {window.id: window for window in windows} if windows is not None else None
        arguments = []
        for data_rank in self._data_ranks:
            share = plan[data_rank]
            own = None if given is None else {window: given[window] for ids in share for window in ids}
            arguments.append((*head, share, own))
        return arguments

    def _reserve(self, deadline_s: float) -> PlacementGroup:
        config = self._job.learner
        bundle = {"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {})
        bundles = placement_group([bundle] * self._job.layout.world, strategy="PACK")
        if not bundles.wait(deadline_s):
            remove_placement_group(bundles)
            wanted = f"{self._job.layout.world} x {bundle}"
            raise LearnerFailure(0, "placement", f"the cluster had no room for {wanted} in {deadline_s:.0f} s")
        return bundles

    def _start(self, rank: int, weights: Weights, buffer: BufferAddress | None) -> Any:
        config = self._job.learner
        return (
            ray.remote(Rank)
            .options(
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._bundles, placement_group_bundle_index=rank),
            )
            .remote(rank, self._job, weights, buffer)
        )

    def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        return self._call(method, [arguments] * len(self._ranks))

    def _call(self, method: str, arguments: Sequence[tuple], deadline_s: float | None = None) -> list[Any]:
        """Call `method` of the first ranks, one for each element of `arguments`; all answers, or LearnerFailure."""
        if not self._ranks:
            raise LearnerFailure(0, method, "the group has ended; start a new one and load the last checkpoint")
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        calls = [getattr(rank, method).remote(*own) for rank, own in zip(self._ranks, arguments, strict=False)]
        until = time.monotonic() + deadline_s
        pending = list(calls)
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, until - time.monotonic()))
            if not done:
                self._release()
                raise LearnerFailure(calls.index(pending[0]), method, f"no answer in {deadline_s:.0f} s")
            try:
                ray.get(done[0])
            except RayError as error:
                failure = self._blame(method, calls, calls.index(done[0]), error)
                self._release()
                raise failure from error
        return ray.get(calls)

    def _blame(self, method: str, calls: list[Any], first: int, error: RayError) -> LearnerFailure:
        """The rank that died, if one did: its peers' errors only say that it is gone."""
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=BLAME_S)
        for call in done:
            try:
                ray.get(call)
            except RayActorError as death:
                return LearnerFailure(calls.index(call), method, death)
            except RayError:
                continue
        return LearnerFailure(first, method, error)

    def _release(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        # Ray waits for ever for a head that is gone, as after a SIGTERM to the whole process group.
        removal = threading.Thread(target=remove_placement_group, args=(self._bundles,), daemon=True)
        removal.start()
        removal.join(RELEASE_S)
        if removal.is_alive():
            log.warning("Ray gave no answer in %g s about the learner's placement group: left to its end", RELEASE_S)
