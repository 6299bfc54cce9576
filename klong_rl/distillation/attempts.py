"""Attempts from their sandbox to their verdict, each going on where it was left.

judged ─▶ nothing to do
begun  ─▶ its sandbox, adopted ─▶ or its snapshot ─▶ or a new one, and all its commands anew
new    ─▶ a sandbox with the task's files
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from klong_rl.blocking import in_thread
from klong_rl.distillation.attempt import REFUSED, Attempt
from klong_rl.distillation.config import DistillConfig
from klong_rl.distillation.journal import Journal, Judged, Parked
from klong_rl.distillation.teacher import Teacher
from klong_rl.judging.grader import GRADING, Grader
from klong_rl.papers.collect import slug
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import EpisodeSpec, Outcome, Task

ATTEMPTS = "attempts"  # below OUT


class Attempts:
    """All of one distillation. `sandboxes` is a sandboxes.base.SandboxFactory."""

    def __init__(
        self,
        config: DistillConfig,
        out: Path,
        teacher: Teacher,
        grader: Grader,
        sandboxes: Any,
        cut: Callable[[str], str],
    ) -> None:
        self._config, self._out, self._teacher = config, out, teacher
        self._grader, self._sandboxes, self._cut = grader, sandboxes, cut
        self.teacher_name = teacher.name

    def spec(self, task: Task, sample: int) -> EpisodeSpec:
        config = self._config
        return EpisodeSpec(
            id=f"{slug(task.id)}-{config.seed}-{sample}",
            group=task.id,
            group_size=config.samples,
            stage=0,
            purpose="train",
            task=task,
            timeout_s=config.timeout_s,
            max_turns=config.max_turns,
        )

    def journal(self, spec: EpisodeSpec) -> Journal:
        return Journal(self._out / ATTEMPTS / f"{spec.id}.jsonl")

    async def run(self, spec: EpisodeSpec) -> Journal:
        """The attempt, judged (or refused by the teacher). Raises InfrastructureFailure, TaskFailure."""
        journal = await in_thread(self.journal, spec)
        if journal.judged is not None or (journal.ended is not None and journal.ended.kind == REFUSED):
            return journal
        sandbox = await self._sandbox(spec, journal)
        try:
            if journal.ended is None:
                await self.attempt(spec, journal, sandbox).run()
            if journal.ended.kind != REFUSED:
                await self._judge(spec, journal, sandbox)
        except BaseException:
            await sandbox.release()  # as it is, for whoever goes on
            raise
        await sandbox.close()
        await self._sandboxes.forget_snapshots(spec.id)
        return journal

    def attempt(self, spec: EpisodeSpec, journal: Journal, sandbox: Any) -> Attempt:
        reply_tokens = self._config.teacher.endpoint.reply_tokens
        return Attempt(spec, self._config.agent, self._teacher, reply_tokens, self._cut, journal, sandbox)

    async def park(self, spec: EpisodeSpec) -> None:
        """Keep a snapshot of an attempt under way, if anything happened in it, and remove its sandbox."""
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
