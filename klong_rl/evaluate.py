"""`python -m klong_rl.evaluate suite=NAME policy=... out=DIR`: a policy on a suite of tasks (docs/evaluate.md).

    check ─▶ suite's tasks × repeats ─▶ Attempts (klong_rl.distillation.attempts) ─▶ table, results.json, report.html

OUT is all that a later run needs: an episode that has its verdict is never run again, one that was left goes on.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path

from hydra.utils import instantiate

from klong_rl import preflight, services
from klong_rl.blocking import in_thread
from klong_rl.chat import ChatFormat
from klong_rl.cli import compose_config, run_main
from klong_rl.distillation.attempt import Teaching, by_characters
from klong_rl.distillation.attempts import Attempts, Policy, spec_of
from klong_rl.distillation.journal import Journal
from klong_rl.distillation.teacher import teacher_of
from klong_rl.errors import UserError
from klong_rl.evaluation.config import MATTERS, EvaluateConfig, check, take_settings
from klong_rl.evaluation.results import Episode, ended, lines, unscored
from klong_rl.evaluation.show import PAGE, RESULTS, Results, check_lines, table, without_score, write
from klong_rl.evaluation.suites import Entry, Suite
from klong_rl.failures import EpisodeFailure, InfrastructureFailure, TaskFailure
from klong_rl.interrupt import run_stoppable
from klong_rl.judging.store import Store, write_whole
from klong_rl.launch import run_id
from klong_rl.monitor.batch_progress import BatchProgress, spent
from klong_rl.types import EpisodeSpec

LONGEST_S = 3600.0  # of an episode, where neither the task nor the user says
WRITE_EVERY_S = 10.0  # between two states of the results while episodes run


def main(overrides: list[str]) -> int:
    """Run the evaluation; the exit code: 0 if every episode has a score, 1 if one has none."""
    config = load_evaluate_config(overrides)
    out = Path(config.out).resolve()
    preflight.check_writable(out)
    with preflight.locked(out, another="out="):
        services.quiet_libraries()
        suite, family = instantiate(config.suite), instantiate(config.tasks)
        entries = chosen(suite.entries(family), config.only)
        if config.check:
            return tell_check(out, entries, suite.refused(family))
        if config.policy.path:  # the newest checkpoint of a run, from here on: no evaluation is of two
            config.policy.path = str(model_folder(Path(config.policy.path)))
        preflight.check_same_configuration(out, asdict(config), MATTERS, another="out=")
        preflight.save_configuration(out, asdict(config))
        evaluation = Evaluation(config, out, suite, entries, suite.refused(family))
        return run_stoppable(evaluation.run, f"stopped; the same command on {out} goes on")


def load_evaluate_config(overrides: Sequence[str]) -> EvaluateConfig:
    """The checked configuration; with a run directory as policy.path, in the scaffold of that run. Raises UserError."""
    config = compose_config("evaluate", "evaluate_schema", EvaluateConfig, overrides)
    run = Path(config.policy.path or ".", preflight.CONFIG_FILE)
    if config.policy.kind == "checkpoint" and config.policy.path and Path(config.policy.path, "checkpoints").is_dir():
        take_settings(config, json.loads(run.read_text()), overrides)
    check(config)
    return config


def model_folder(path: Path) -> Path:
    """Of a run directory the folder of its newest checkpoint, else `path` itself. Raises UserError."""
    if not (path / "checkpoints").is_dir():
        preflight.check_model_folder(path)
        return path
    found = sorted(path.glob("checkpoints/step-*/hf"))
    if not found:
        raise UserError(f"policy.path={path} is a run that has no checkpoint yet; wait for its first one")
    preflight.check_model_folder(found[-1])
    return found[-1]


def chosen(entries: list[Entry], only: Sequence[str]) -> list[Entry]:
    """Those whose task's id one of `only` matches. Raises UserError."""
    found = [each for each in entries if not only or any(fnmatch.fnmatch(each.task.id, one) for one in only)]
    for pattern in only:
        if not any(fnmatch.fnmatch(each.task.id, pattern) for each in found):
            some = ", ".join(each.task.id for each in entries[:3])
            raise UserError(f"only={pattern} matches no task of the suite; its ids are {some}, ...")
    return found


def tell_check(out: Path, entries: Sequence[Entry], refused: dict[str, str]) -> int:
    """Print what can be used and what can't; the list is in OUT/tasks.jsonl."""
    for line in check_lines([each.task.id for each in entries], refused):
        print(line, flush=True)
    rows = [{"task": each.task.id, "part": each.part, "refused": ""} for each in entries]
    rows += [{"task": name, "part": "", "refused": why} for name, why in refused.items()]
    write_whole(out / "tasks.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    print(f"each of them: {out / 'tasks.jsonl'}", flush=True)
    return 0 if entries else 1


class Evaluation:
    """One run of one evaluation."""

    def __init__(
        self, config: EvaluateConfig, out: Path, suite: Suite, entries: list[Entry], refused: dict[str, str]
    ) -> None:
        self.config, self.out = config, out
        self._suite, self._entries, self._refused = suite, entries, dict(refused)
        self._done: dict[str, Episode] = {}
        self._journals: dict[str, Journal] = {}
        self._written = 0.0
        self._policy_name = ""

    async def run(self) -> int:
        if not self._entries:
            raise UserError(f"the suite {self._suite.name} has no task that can be used; check=true says why")
        async with AsyncExitStack() as stack:
            total = len(self._entries) * self.config.repeats
            progress = stack.enter_context(BatchProgress("episodes", total))
            policy = await self._policy(stack)
            self._policy_name = policy.name
            attempts = await self._attempts(stack, policy)
            await self._batch(attempts, progress)
            return await self._finish(progress)

    async def _batch(self, attempts: Attempts, progress: BatchProgress) -> None:
        room = asyncio.Semaphore(self.config.at_once)

        async def one(entry: Entry, sample: int) -> None:
            spec = self._spec(entry, sample)
            async with room:
                progress.work(spec.id, "episode")
                before = attempts.journal(spec)
                try:
                    journal = await attempts.run(spec)
                    episode = ended(spec, entry.part, sample, journal)
                except EpisodeFailure as failure:  # ours or the task's: no score, and the others go on
                    journal = attempts.journal(spec)
                    episode = unscored(spec, entry.part, sample, failure, journal.usage)
                progress.spend(journal.usage - before.usage if journal.goes_on_from(before) else journal.usage)
                self._journals[spec.id], self._done[spec.id] = journal, episode
                progress.done(spec.id, line_of(episode))
                if time.monotonic() - self._written > WRITE_EVERY_S:
                    self._written = time.monotonic()
                    await in_thread(self._write, self._results())

        async with asyncio.TaskGroup() as group:
            for sample in range(self.config.repeats):
                for entry in self._entries:
                    group.create_task(one(entry, sample))

    def _spec(self, entry: Entry, sample: int) -> EpisodeSpec:
        config = self.config
        timeout_s = config.timeout_s or entry.task.timeout_s or LONGEST_S
        more = {"samples": config.repeats, "seed": config.seed, "purpose": "eval"}
        return spec_of(entry.task, sample, timeout_s=timeout_s, max_turns=config.max_turns, **more)

    def _results(self) -> Results:
        config = self.config
        about = {
            "suite": self._suite.name,
            "policy": self._policy_name,
            "repeats": config.repeats,
            "seed": config.seed,
            "confidence": config.confidence,
            "at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        episodes = [self._done[name] for name in sorted(self._done)]
        order = {entry.part: None for entry in self._entries}
        episodes.sort(key=lambda each: list(order).index(each.part))
        found = lines(episodes, config.confidence)
        return Results(about=about, lines=found, episodes=episodes, refused=self._refused)

    def _write(self, results: Results) -> list[Path]:
        write(self.out, results, dict(self._journals))
        return self._suite.write(self.out, self._entries, results.episodes)

    async def _finish(self, progress: BatchProgress) -> int:
        results = self._results()
        written = await in_thread(self._write, results)
        progress.console.print(table(results))
        for line in without_score(results):
            progress.say(line)
        if self._refused:
            progress.say(f"{len(self._refused)} tasks were refused; check=true says why")
        progress.say(f"this run: {spent(progress.usage)}")
        for path in (self.out / RESULTS, self.out / PAGE, *written):
            progress.say(str(path))
        return int(any(each.score is None for each in results.episodes))

    async def _policy(self, stack: AsyncExitStack) -> Policy:
        config = self.config
        if config.policy.kind != "checkpoint":
            demonstrator = config.cold_start.demonstrator
            teacher = teacher_of(stack, config.policy, demonstrator, Store(self.out), role="policy")
            return Teaching(teacher, config.agent, config.policy.endpoint.reply_tokens, self._cut())
        from actors.evaluated import CheckpointPolicy

        folder = Path(config.policy.path).resolve()
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": str(config.engine.kv_cache_gib), "VLLM_LOGGING_LEVEL": "ERROR"}
        name = str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
        policy = await CheckpointPolicy.start(name, folder, config.agent, config.window, config.engine, config.seed)
        stack.callback(policy.close)
        return policy

    def _cut(self) -> Callable[[str], str]:
        limit = self.config.agent.observation_tokens
        if not self.config.policy.path:
            return by_characters(limit)
        chat = ChatFormat(Path(self.config.policy.path))
        return lambda text: chat.cut(text, limit)

    async def _attempts(self, stack: AsyncExitStack, policy: Policy) -> Attempts:
        config, run = self.config, f"evaluate-{run_id(self.out)}"
        attempts = await Attempts.opened(stack, self.out, run, policy, config.judge, config.reward, config.sandbox)
        if any(entry.task.image == config.sandbox.image for entry in self._entries):
            try:
                await attempts.prepare(config.sandbox.image)
            except (InfrastructureFailure, TaskFailure) as failure:
                raise UserError(f"sandbox: {failure}") from failure
        return attempts


def line_of(episode: Episode) -> str:
    """What became of an episode, in one line."""
    if episode.score is None:
        return f"{episode.id}: no score: {episode.blame}: {' '.join(episode.detail.split())}"
    return f"{episode.id}: score {episode.score:.3f}, {episode.outcome} after {episode.turns} turns"


if __name__ == "__main__":
    run_main(main)
