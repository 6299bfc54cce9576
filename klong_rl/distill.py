"""`python -m klong_rl.distill tasks=DIR out=DIR teacher=...`: a teacher's best attempts, as klong_rl.sft reads them.

    check ─▶ training tasks × samples ─▶ Attempts (klong_rl.distillation.attempts) ─▶ the best ─▶ OUT/trajectories.jsonl

OUT is all that a later run needs: an attempt goes on where it was left, and no answer is paid twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from hydra.utils import instantiate
from rich.table import Table

from klong_rl import preflight, services
from klong_rl.chat import ChatFormat
from klong_rl.cli import CONF, compose_config, run_main
from klong_rl.distillation.attempt import Teaching, by_characters
from klong_rl.distillation.attempts import Attempts, spec_of
from klong_rl.distillation.config import DistillConfig, check
from klong_rl.distillation.journal import Journal
from klong_rl.distillation.selection import Candidate, best, row
from klong_rl.distillation.teacher import teacher_of
from klong_rl.errors import UserError
from klong_rl.failures import EpisodeFailure, InfrastructureFailure, TaskFailure
from klong_rl.interrupt import run_stoppable
from klong_rl.judging.store import Store, write_whole
from klong_rl.launch import run_id
from klong_rl.monitor.batch_progress import BatchProgress, spent
from klong_rl.tasks.base import TaskFamily
from klong_rl.types import EpisodeSpec, Task

TRAJECTORIES, SCORES = "trajectories.jsonl", "scores.jsonl"
MOST_TASKS = 10_000  # of a family that seems to have no end


def main(overrides: list[str]) -> int:
    """Run the distillation; the exit code: 0 if it has a trajectory, 1 if nothing came of it."""
    config = load_distill_config(overrides)
    out = Path(config.out).resolve()
    preflight.check_writable(out)
    with preflight.locked(out, another="out="):
        services.quiet_libraries()
        return run_stoppable(Distillation(config, out).run, f"stopped; the same command on {out} goes on")


def load_distill_config(overrides: Sequence[str]) -> DistillConfig:
    """The checked configuration; `tasks=DIR` is short for tasks=papers tasks.path=DIR. Raises UserError."""
    names, given = {path.stem for path in (CONF / "tasks").glob("*.yaml")}, []
    for override in overrides:
        key, _, value = override.partition("=")
        folder = key == "tasks" and value not in names and ("/" in value or Path(value).is_dir())
        given += ["tasks=papers", f"tasks.path={value}"] if folder else [override]
    config = compose_config("distill", "distill_schema", DistillConfig, given)
    check(config)
    return config


def training_tasks(family: TaskFamily, difficulty: int, count: int) -> list[Task]:
    """The first `count` training tasks, each once; with 0 all, up to the first that comes again. Raises UserError."""
    found: dict[str, Task] = {}
    for index in range(count or MOST_TASKS):
        task = family.train(difficulty, index)
        if task.id in found and count == 0:
            return list(found.values())
        found.setdefault(task.id, task)
    if count == 0:
        raise UserError(f"count=0 is all tasks, and this family has over {MOST_TASKS}; set count=")
    return list(found.values())


class Distillation:
    """One run."""

    def __init__(self, config: DistillConfig, out: Path) -> None:
        self.config, self.out = config, out

    async def run(self) -> int:
        tasks = training_tasks(instantiate(self.config.tasks), self.config.difficulty, self.config.count)
        async with AsyncExitStack() as stack:
            progress = stack.enter_context(BatchProgress("attempts", len(tasks) * self.config.samples))
            teaching = self._teaching(stack)
            attempts = await self._attempts(stack, teaching)
            specs = [self._spec(task, sample) for sample in range(self.config.samples) for task in tasks]
            return await self._batch(attempts, teaching, specs, progress)

    async def _batch(
        self, attempts: Attempts, teaching: Teaching, specs: list[EpisodeSpec], progress: BatchProgress
    ) -> int:
        done: dict[str, tuple[EpisodeSpec, Journal]] = {}
        room = asyncio.Semaphore(self.config.at_once)

        async def one(spec: EpisodeSpec) -> None:
            async with room:
                if self._has_enough(spec.task.id, done):
                    progress.done(spec.id, f"{spec.id}: not needed, enough attempts scored {self.config.enough:g}")
                    return
                progress.work(spec.id, "attempt")
                before = attempts.journal(spec).usage
                try:
                    journal = await attempts.run(spec)
                except (EpisodeFailure, UserError) as failure:  # ours, the task's or the teacher's: the others go on
                    progress.done(spec.id, f"{spec.id}: failed: {' '.join(str(failure).split())}")
                    return
                progress.spend(journal.usage - before)
                if journal.judged is not None:
                    done[spec.id] = (spec, journal)
                    self._write(teaching, done)
                progress.done(spec.id, line_of(spec, journal))

        async with asyncio.TaskGroup() as group:
            for spec in specs:
                group.create_task(one(spec))
        kept = self._write(teaching, done)
        self._tell(done, kept, progress)
        return 0 if kept else 1

    def _has_enough(self, task: str, done: dict[str, tuple[EpisodeSpec, Journal]]) -> bool:
        good = [journal for spec, journal in done.values() if spec.task.id == task]
        return sum(journal.judged.score >= self.config.enough for journal in good) >= self.config.keep

    def _write(self, teaching: Teaching, done: dict[str, tuple[EpisodeSpec, Journal]]) -> int:
        """Both files, whole, from all that is judged; how many trajectories are kept."""
        rows = {}
        for name, (spec, journal) in sorted(done.items()):
            rows[name] = row(spec, journal, teaching.attempt(spec, journal).messages(), teaching.name)
        candidates = [
            Candidate(id=name, task=each["task"], score=each["score"], turns=each["turns"])
            for name, each in rows.items()
        ]
        chosen = [each.id for each in best(candidates, self.config.keep, self.config.min_score)]
        write_whole(self.out / TRAJECTORIES, _lines(rows[name] for name in chosen))
        left_out = ("messages", "thinking")
        scores = (
            {k: v for k, v in each.items() if k not in left_out} | {"kept": n in chosen} for n, each in rows.items()
        )
        write_whole(self.out / SCORES, _lines(scores))
        return len(chosen)

    def _tell(self, done: dict[str, tuple[EpisodeSpec, Journal]], kept: int, progress: BatchProgress) -> None:
        table = Table("task", "attempts", "scores")
        for task in sorted({spec.task.id for spec, _ in done.values()}):
            scores = sorted((j.judged.score for s, j in done.values() if s.task.id == task), reverse=True)
            table.add_row(task, str(len(scores)), " ".join(f"{score:.3f}" for score in scores[:8]))
        progress.console.print(table)
        progress.say(f"this run: {spent(progress.usage)}")
        progress.say(f"{kept} trajectories: {self.out / TRAJECTORIES}; every attempt: {self.out / SCORES}")

    def _spec(self, task: Task, sample: int) -> EpisodeSpec:
        config = self.config
        limits = {"timeout_s": config.timeout_s, "max_turns": config.max_turns}
        return spec_of(task, sample, samples=config.samples, seed=config.seed, **limits)

    async def _attempts(self, stack: AsyncExitStack, teaching: Teaching) -> Attempts:
        config, run = self.config, f"distill-{run_id(self.out)}"
        attempts = await Attempts.opened(stack, self.out, run, teaching, config.judge, config.reward, config.sandbox)
        try:
            await attempts.prepare(config.sandbox.image)
        except (InfrastructureFailure, TaskFailure) as failure:
            raise UserError(f"sandbox: {failure}") from failure
        return attempts

    def _teaching(self, stack: AsyncExitStack) -> Teaching:
        teacher = teacher_of(stack, self.config.teacher, self.config.cold_start.demonstrator, Store(self.out))
        return Teaching(teacher, self.config.agent, self.config.teacher.endpoint.reply_tokens, self._cut())

    def _cut(self) -> Callable[[str], str]:
        limit = self.config.agent.observation_tokens
        if not self.config.policy:
            return by_characters(limit)
        preflight.check_model_folder(Path(self.config.policy))
        chat = ChatFormat(Path(self.config.policy))
        return lambda text: chat.cut(text, limit)


def _lines(rows) -> bytes:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows).encode(errors="replace")


def line_of(spec: EpisodeSpec, journal: Journal) -> str:
    """What became of an attempt, in one line."""
    how = f"{journal.ended.kind} after {len(journal.turned)} turns"
    if journal.judged is None:
        return f"{spec.id}: {how}: {journal.ended.detail}"
    return f"{spec.id}: score {journal.judged.score:.3f}, {how}"


if __name__ == "__main__":
    run_main(main)
