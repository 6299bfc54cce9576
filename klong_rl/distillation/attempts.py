"""Attempts from their sandbox to their verdict, each going on where it was left: a teacher's, or an evaluation's.

judged ─▶ nothing to do
begun  ─▶ its sandbox, adopted ─▶ or its snapshot ─▶ or a new one, and all its commands anew
new    ─▶ a sandbox with the task's files
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate

from klong_rl import services
from klong_rl.blocking import in_thread
from klong_rl.config import JudgeConfig, SandboxConfig
from klong_rl.distillation.attempt import REFUSED
from klong_rl.distillation.journal import Journal, Judged, Parked
from klong_rl.failures import EpisodeFailure
from klong_rl.judging.grader import GRADING, Grader
from klong_rl.judging.record import Records
from klong_rl.judging.store import Store
from klong_rl.papers.collect import slug
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import EpisodeSpec, Outcome, Task

log = logging.getLogger(__name__)

ATTEMPTS = "attempts"  # below OUT


class Policy(Protocol):
    """Who acts."""

    name: str

    async def run(self, spec: EpisodeSpec, journal: Journal, sandbox: Any) -> None:
        """Act until the attempt has ended, from where `journal` leaves off; `ended` is in it then.

        Raises InfrastructureFailure: then it goes on another time.
        """


def spec_of(
    task: Task,
    sample: int,
    *,
    samples: int,
    seed: int,
    timeout_s: float,
    max_turns: int,
    purpose: str = "train",
) -> EpisodeSpec:
    """The `sample`-th attempt of several at a task."""
    return EpisodeSpec(
        id=f"{slug(task.id)}-{seed}-{sample}",
        group=task.id,
        group_size=samples,
        stage=0,
        purpose=purpose,
        task=task,
        timeout_s=timeout_s,
        max_turns=max_turns,
    )


class Attempts:
    """All of one folder. `sandboxes` is a sandboxes.base.SandboxFactory."""

    def __init__(self, out: Path, policy: Policy, grader: Grader, sandboxes: Any) -> None:
        self._out, self._policy, self._grader, self._sandboxes = out, policy, grader, sandboxes
        self._under_way: dict[str, EpisodeSpec] = {}

    @classmethod
    async def opened(
        cls,
        stack: AsyncExitStack,
        out: Path,
        run: str,
        policy: Policy,
        judge: JudgeConfig,
        reward: dict[str, Any],
        sandbox: SandboxConfig,
    ) -> Attempts:
        """With a grader and sandboxes of its own, closed with `stack`; what is under way then is parked."""
        store = Store(out)
        grader = Grader(judge, reward, store, Records(store.folder / "records"))
        stack.push_async_callback(grader.close)
        sandboxes = instantiate(services.sandbox_factory(sandbox, out, run))
        stack.push_async_callback(sandboxes.close)
        attempts = cls(out, policy, grader, sandboxes)
        stack.push_async_callback(attempts.park)
        return attempts

    async def prepare(self, image: str) -> None:
        """Raises InfrastructureFailure, TaskFailure where there is no such image."""
        await self._sandboxes.prepare(image)

    def journal(self, spec: EpisodeSpec) -> Journal:
        return Journal(self._out / ATTEMPTS / f"{spec.id}.jsonl")

    async def run(self, spec: EpisodeSpec) -> Journal:
        """The attempt, judged (or refused by who acts). Raises InfrastructureFailure, TaskFailure."""
        journal = await in_thread(self.journal, spec)
        if journal.judged is not None or (journal.ended is not None and journal.ended.kind == REFUSED):
            return journal
        self._under_way[spec.id] = spec
        sandbox = await self._sandbox(spec, journal)
        try:
            if journal.ended is None:
                await self._policy.run(spec, journal, sandbox)
            if journal.ended.kind != REFUSED:
                await self._judge(spec, journal, sandbox)
        except BaseException:
            await sandbox.release()  # as it is, for whoever goes on
            raise
        await sandbox.close()
        await self._sandboxes.forget_snapshots(spec.id)
        del self._under_way[spec.id]
        return journal

    async def park(self) -> None:
        """Keep a snapshot of each attempt under way, if anything happened in it, and remove its sandbox.

        What can't be parked stays as it is, and is adopted by the next run.
        """
        for spec in self._under_way.values():
            try:
                await self._park(spec)
            except EpisodeFailure as failure:
                log.warning("%s: no snapshot: %s", spec.id, failure)

    async def _park(self, spec: EpisodeSpec) -> None:
        journal = await in_thread(self.journal, spec)
        sandbox = await self._sandboxes.adopt(spec.id)
        if sandbox is None:
            return
        if journal.intended:
            await in_thread(journal.add, Parked(image=await sandbox.snapshot("parked")))
        await sandbox.close()

    async def _sandbox(self, spec: EpisodeSpec, journal: Journal) -> Any:
        task = spec.task
        if journal.intended:
            sandbox = await self._sandboxes.adopt(spec.id)
            if sandbox is None and journal.parked:
                sandbox = await self._sandboxes.create(spec.id, 1, journal.parked, task.limits)
            if sandbox is not None:
                return sandbox
            await in_thread(journal.restart)
        sandbox = await self._sandboxes.create(spec.id, 1, task.image, task.limits)
        await sandbox.write_many(task.files)
        return sandbox

    async def _judge(self, spec: EpisodeSpec, journal: Journal, sandbox: Any) -> None:
        async def given() -> Any:
            return sandbox

        finished = FinishedEpisode(spec, Outcome(kind=journal.ended.kind, detail=journal.ended.detail))
        graded = await self._grader.grade(finished, 1, given, lambda image: self._fresh(spec, image))
        verdict = graded.verdict
        judged = Judged(score=verdict.score, parts=verdict.parts, evidence=verdict.evidence, usage=graded.usage)
        await in_thread(journal.add, judged)

    @asynccontextmanager
    async def _fresh(self, spec: EpisodeSpec, image: str) -> AsyncIterator[Any]:
        sandbox = await self._sandboxes.create(spec.id + GRADING, 1, image, spec.task.limits)
        try:
            yield sandbox
        finally:
            await sandbox.close()
