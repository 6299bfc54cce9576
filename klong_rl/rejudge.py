"""`python -m klong_rl.rejudge run=DIR [reward=NAME] [judge.KEY=VALUE ...]`: judge what is stored, without a rollout.

    a snapshot was kept (judge.keep_snapshots)   a sandbox of it: any reward
    else                                         what the first judging read and ran: a reward that asks for no more

Anything else is said, episode by episode, and never scored. Without `reward` it is the run's own; settings that aren't
given are the run's. What the judge model answered to the same question before isn't asked again. Scores go to
DIR/judging/rejudged/NAME.jsonl, records beside it; nothing that the run made is changed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from klong_rl import services
from klong_rl.cli import load_config, run_main
from klong_rl.config import RunConfig
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.judging.archived import archived
from klong_rl.judging.grader import GRADING, Grader
from klong_rl.judging.record import Record, Records
from klong_rl.judging.store import Store, write_whole
from klong_rl.judging.witness import Replayed
from klong_rl.launch import run_id
from klong_rl.preflight import CONFIG_FILE
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import EpisodeSpec, Outcome, Task
from klong_rl.wire import decode

USAGE = "use run=DIR, the directory of a run, then reward=NAME and judge.KEY=VALUE as for a launch"
OWN_SECTIONS = ("judge", "sandbox")  # of the run's configuration, unless given anew
NO_RECORD = "no record was kept when it was judged"
AGAIN = "/rejudge"  # after an episode's name: the sandbox that it is judged again in


class Result(NamedTuple):
    """One episode: its score then and now, or why there is none now."""

    episode: str
    stage: int
    purpose: str
    was: float
    score: float | None
    problem: str


def main(arguments: Sequence[str]) -> int:
    """Judge again; the exit code is 1 if some could not be."""
    run_dir, config, name = parse(arguments)
    results = asyncio.run(rejudge(run_dir, config, name))
    show(results, Console())
    return 1 if any(result.problem for result in results) else 0


def parse(arguments: Sequence[str]) -> tuple[Path, RunConfig, str]:
    """The run directory, the configuration to judge by, and what to call the result. Raises UserError."""
    runs = [argument[4:] for argument in arguments if argument.startswith("run=")]
    rest = [argument for argument in arguments if not argument.startswith("run=")]
    if len(runs) != 1 or not runs[0]:
        raise UserError(f"name one run; {USAGE}")
    for override in rest:
        if override.lstrip("+~").split("=")[0].split(".")[0] not in ("reward", "judge"):
            raise UserError(f"{override} says nothing about judging; {USAGE}")
    path = Path(runs[0]).resolve() / CONFIG_FILE
    if not path.exists():
        raise UserError(f"run={runs[0]} holds no {CONFIG_FILE}, so it isn't a run that was launched; {USAGE}")
    stored = json.loads(path.read_text())
    own = [override for section in OWN_SECTIONS for override in _overrides(stored[section], section)]
    config, _ = load_config([*own, *rest])
    if not any(override.lstrip("+~").startswith("reward") for override in rest):
        config.reward = stored["reward"]
    config.judge.keep_snapshots = False  # those that were kept stay, no others come
    named = [override.partition("=")[2] for override in rest if override.startswith("reward=")]
    return path.parent, config, named[0] if named else str(config.reward.get("_target_", "reward")).split(".")[-1]


def _overrides(node: Any, key: str) -> list[str]:
    """A stored section as overrides of a launch."""
    if isinstance(node, dict):
        return [override for name, child in node.items() for override in _overrides(child, f"{key}.{name}")]
    return [f"{key}={json.dumps(node, ensure_ascii=False)}"]


async def rejudge(run_dir: Path, config: RunConfig, name: str) -> list[Result]:
    """Every scored episode that is archived or has a record, by name. Raises UserError where there is none."""
    store, episodes = Store(run_dir), archived(run_dir)
    newest: dict[str, Record] = {}
    records, unreadable = Records(store.folder / "records").all()
    for record, sha256 in records:
        chosen = episodes[record.episode].record if record.episode in episodes else ""
        if chosen == sha256 or (not chosen and record.at >= newest.get(record.episode, record).at):
            newest[record.episode] = record
    without = [
        Result(episode, known.stage, known.purpose, known.score, None, "; ".join([NO_RECORD, *unreadable]))
        for episode, known in episodes.items()
        if known.score is not None and episode not in newest
    ]
    if not newest and not without:
        raise UserError(f"{run_dir} has no judged episodes: there is nothing to judge again")
    folder = store.folder / "rejudged"
    async with AsyncExitStack() as stack:
        grader = Grader(config.judge, config.reward, store, Records(folder / name))
        stack.push_async_callback(grader.close)
        sandboxes = None
        if any(record.snapshot for record in newest.values()):
            sandboxes = instantiate(services.sandbox_factory(config.sandbox, run_dir, run_id(run_dir)))
            stack.push_async_callback(sandboxes.close)
        room = asyncio.Semaphore(config.judge.episodes)
        results = await asyncio.gather(*(_again(record, grader, store, sandboxes, room) for record in newest.values()))
    found = sorted([*results, *without])
    lines = "".join(json.dumps(result._asdict()) + "\n" for result in found)
    write_whole(folder / f"{name}.jsonl", lines.encode())
    return found


async def _again(record: Record, grader: Grader, store: Store, sandboxes: Any, room: asyncio.Semaphore) -> Result:
    score, problem = None, ""
    async with room:
        try:
            finished = _finished(record, store)
            async with _left_by(record, finished, store, sandboxes) as (sandbox, fresh):
                score = (await grader.grade(finished, record.epoch, sandbox, fresh)).verdict.score
        except (InfrastructureFailure, TaskFailure) as failure:
            problem = str(failure)
    return Result(record.episode, record.stage, record.purpose, record.score, score, problem)


def _finished(record: Record, store: Store) -> FinishedEpisode:
    """Raises Damaged."""
    spec = EpisodeSpec(
        id=record.episode,
        group=record.group,
        group_size=record.group_size,
        stage=record.stage,
        purpose=record.purpose,
        task=decode(store.get(record.task), Task),
        timeout_s=record.timeout_s,
        max_turns=record.max_turns,
    )
    return FinishedEpisode(spec, Outcome(kind=record.outcome, detail=record.outcome_detail))


@asynccontextmanager
async def _left_by(record: Record, finished: FinishedEpisode, store: Store, sandboxes: Any) -> AsyncIterator[tuple]:
    """What opens the sandbox that an episode left, or what stands in for it, and what opens a fresh one."""
    name, limits = record.episode + AGAIN, finished.spec.task.limits
    async with AsyncExitStack() as stack:

        async def left() -> Any:
            if not record.snapshot:
                return Replayed(record.episode, record.reads, record.commands, store)
            stack.push_async_callback(sandboxes.forget_snapshots, name)
            sandbox = await sandboxes.create(name, record.epoch, record.snapshot, limits)
            stack.push_async_callback(sandbox.close)
            return sandbox

        @asynccontextmanager
        async def fresh(image: str) -> AsyncIterator[Any]:
            sandbox = await sandboxes.create(name + GRADING, record.epoch, image, limits)
            try:
                yield sandbox
            finally:
                await sandbox.close()

        yield left, fresh


def show(results: Sequence[Result], console: Console) -> None:
    """A line for each episode that could not be judged again, then the means by stage and purpose."""
    for result in results:
        if result.problem:
            text = f"not judged again: {result.episode}: {result.problem}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    table = Table("stage", "purpose", "episodes", "judged again", "their mean then", "now")
    for stage, purpose in sorted({(result.stage, result.purpose) for result in results}):
        some = [result for result in results if (result.stage, result.purpose) == (stage, purpose)]
        both = [(result.was, result.score) for result in some if result.score is not None]
        means = [f"{statistics.fmean(scores):.3f}" for scores in zip(*both, strict=True)] or ["-", "-"]
        table.add_row(str(stage), purpose, str(len(some)), str(len(both)), *means)
    console.print(table)


if __name__ == "__main__":
    run_main(main)
