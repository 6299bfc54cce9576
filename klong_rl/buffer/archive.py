"""Consumed groups go from Redis to `RUN_DIR/archive/groups-NNNNNN.parquet`: written once, then forgotten in Redis.

    consumed ─▶ read a few groups ─▶ write aside, make durable, rename ─▶ forget each ─▶ the next few
                                            │ a crash here                    │ or here
                                            └ they are read, written anew     └ a file holds them: only forgotten

A group is in one file at most, and leaves Redis only once that file is durable. Each file names its groups in its
footer; the footers are read once a launch, so that what a crash left half done is known. Files are numbered in the
order in which they were written.

One row a turn; an episode without turns (dropped, or cut before its first action) has one row with no turn in it.

    group, episode, task      string    ids
    stage                     int32
    purpose                   string    "train" or "eval"
    step                      int32     the learner step that trained the group; null: evaluation, all stale, or nothing
    epoch                     int32     which attempt at the episode this is
    outcome, outcome_detail   string    how it ended; null for a dropped one
    dropped                   string    why it was dropped, else null
    score                     float64   of the episode; null for a dropped one
    turn, context_start       int32     the action was sampled in prefix + turns[context_start:turn]; of an agent
    follows, prompt           int32, [int32]  from outside, in context and action of turn `follows`, then `prompt`
    masked                    string    why the action is no target of its window, else null
    action                    [int32]   tokens the model sampled, the stop token included
    logprobs                  [float32] of each, at the sampling temperature
    versions                  [int32]   policy version that sampled each
    observation               [int32]   tokens of the environment's answer, and the opening of the next action
    command, exit_code, seconds         what the action ran; active seconds, sampling included
    interrupted               bool      whoever ran the command died meanwhile
    chain                     binary    digest of context, action and the chain before (klong_rl.chain)
    window, advantage         string, float64   that trained the action; null: never trained, or dropped as stale
    prefix                    [int32]   task and tools; in the first row of an episode, and so are
    score_parts, evidence     {string: float64}, {string: string}   of the verdict

    >>> pandas.read_parquet("runs/nano-seed0/archive")
    >>> duckdb.sql("select stage, avg(score) from 'runs/nano-seed0/archive/*.parquet' where turn = 0 group by stage")
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klong_rl.blocking import in_thread
from klong_rl.buffer.client import Buffer
from klong_rl.buffer.records import EpisodeView, Member
from klong_rl.durable import fsync
from klong_rl.types import Turn, Window
from klong_rl.windows import window_of_each

GROUPS_A_FILE = 64  # a run of short episodes gets few files
TURNS_A_FILE = 4096  # and one of long episodes never holds more than some ten MB at once
_GROUPS = b"klong.groups"  # in the footer: the ids of the groups, as JSON

_TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {
        "group": pa.string(),
        "episode": pa.string(),
        "task": pa.string(),
        "stage": pa.int32(),
        "purpose": pa.string(),
        "step": pa.int32(),
        "epoch": pa.int32(),
        "outcome": pa.string(),
        "outcome_detail": pa.string(),
        "dropped": pa.string(),
        "score": pa.float64(),
        "turn": pa.int32(),
        "context_start": pa.int32(),
        "follows": pa.int32(),
        "prompt": _TOKENS,
        "masked": pa.string(),
        "action": _TOKENS,
        "logprobs": pa.list_(pa.float32()),
        "versions": _TOKENS,
        "observation": _TOKENS,
        "command": pa.string(),
        "exit_code": pa.int32(),
        "seconds": pa.float64(),
        "interrupted": pa.bool_(),
        "chain": pa.binary(),
        "window": pa.string(),
        "advantage": pa.float64(),
        "prefix": _TOKENS,
        "score_parts": pa.map_(pa.string(), pa.float64()),
        "evidence": pa.map_(pa.string(), pa.string()),
    }
)


class ConsumedGroup(NamedTuple):
    """All that the buffer knows of one group: a view for each member, and the windows that were trained."""

    name: str
    step: int | None
    members: list[Member]
    views: list[EpisodeView]
    windows: list[Window]

    def n_turns(self) -> int:
        return sum(len(segment.turns) for member in self.members for segment in member.segments)


def rows_of(group: ConsumedGroup) -> Iterator[dict[str, Any]]:
    """The rows of one group, as SCHEMA has them; what a row leaves out is null in it."""
    advantages = {window.id: window.advantage for window in group.windows}
    for member, view in zip(group.members, group.views, strict=True):
        spec, outcome, verdict = member.spec, member.outcome, member.verdict
        shared = {
            "group": spec.group,
            "episode": spec.id,
            "task": spec.task.id,
            "stage": spec.stage,
            "purpose": spec.purpose,
            "step": group.step,
            "epoch": view.epoch,
            "outcome": outcome.kind if outcome else None,
            "outcome_detail": outcome.detail if outcome else None,
            "dropped": view.reason or None,
            "score": verdict.score if verdict else None,
        }
        turns = [turn for segment in member.segments for turn in segment.turns]
        once = {
            "prefix": member.segments[0].prefix_P if member.segments else None,
            "score_parts": list(verdict.parts.items()) if verdict else None,
            "evidence": list(verdict.evidence.items()) if verdict else None,
        }
        if not turns:
            yield shared | once
        for turn, window in zip(turns, window_of_each(spec, turns), strict=True):
            yield shared | _turn(turn) | _training(window, advantages) | (once if turn is turns[0] else {})


def _turn(turn: Turn) -> dict[str, Any]:
    versions, counts = np.array(turn.versions, np.int32).reshape(-1, 2).T
    return {
        "turn": turn.index,
        "context_start": turn.context_start,
        "follows": None if turn.prompt_T is None else turn.follows,
        "prompt": turn.prompt_T,
        "masked": turn.masked or None,
        "action": turn.action_A,
        "logprobs": turn.logprobs_A,
        "versions": np.repeat(versions, counts),
        "observation": turn.observation_O,
        "command": turn.command,
        "exit_code": turn.exit_code,
        "seconds": turn.seconds,
        "interrupted": turn.interrupted,
        "chain": turn.chain,
    }


def turn_of(row: dict[str, Any]) -> Turn:
    """The turn of a row that has one: what `rows_of` made the row of. Older files have no column of a prompt."""
    prompt = row.get("prompt")
    return Turn(
        index=row["turn"],
        context_start=row["context_start"],
        action_A=np.array(row["action"], np.int32),
        logprobs_A=np.array(row["logprobs"], np.float32),
        versions=tuple((version, len(list(run))) for version, run in itertools.groupby(row["versions"])),
        observation_O=np.array(row["observation"], np.int32),
        command=row["command"],
        exit_code=row["exit_code"],
        seconds=row["seconds"],
        interrupted=row["interrupted"],
        chain=row["chain"],
        follows=-1 if prompt is None else row["follows"],
        prompt_T=None if prompt is None else np.array(prompt, np.int32),
        masked=row.get("masked") or "",
    )


def _training(window: str, advantages: dict[str, float]) -> dict[str, Any]:
    return {"window": window, "advantage": advantages[window]} if window in advantages else {}


class ArchiveFiles:
    """The Parquet files of one run directory. Blocking; one writer at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """In the order in which they were written."""
        return sorted(self.folder.glob("groups-*.parquet"), key=_number)

    def groups(self) -> set[str]:
        """The ids of all groups that a file holds, from the footers."""
        found: set[str] = set()
        for path in self.paths():
            found.update(json.loads(pq.read_schema(path).metadata[_GROUPS]))
        return found

    def write(self, groups: list[ConsumedGroup]) -> Path:
        """The next file, durable when this returns. What a crash leaves of it is written over by the next write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [row for group in groups for row in rows_of(group)]
        footer = {_GROUPS: json.dumps([group.name for group in groups])}
        table = pa.Table.from_pylist(rows, SCHEMA.with_metadata(footer))
        partial = self.folder / ".groups.partial"
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        written = self.paths()
        path = self.folder / f"groups-{_number(written[-1]) + 1 if written else 1:06d}.parquet"
        os.rename(partial, path)
        fsync(self.folder)
        return path


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("groups-"))


async def archive(buffer: Buffer, files: ArchiveFiles, written: set[str]) -> None:
    """Archive whatever is consumed, until nothing is. `written`: groups that a file holds; those written are added."""
    while names := await buffer.consumed(GROUPS_A_FILE):
        new = await _read([name for name in names if name not in written], buffer)
        if new:
            await in_thread(files.write, new)
            written.update(group.name for group in new)
        for name in names:
            if name in written:
                await buffer.forget(name)


async def _read(names: list[str], buffer: Buffer) -> list[ConsumedGroup]:
    """The first of these groups, as many as one file takes."""
    groups: list[ConsumedGroup] = []
    for name in names:
        members = await buffer.group(name)
        views = [await buffer.episode(member.spec.id) for member in members]
        windows = await buffer.windows([ref.id for ref in await buffer.refs(name)])
        groups.append(ConsumedGroup(name, await buffer.trained_at(name), members, views, windows))
        if sum(group.n_turns() for group in groups) >= TURNS_A_FILE:
            break
    return groups


class Archiver:
    """Archives beside the training, which never waits for it: `start` after each commit, `finish` at the end."""

    def __init__(self, buffer: Buffer, folder: Path) -> None:
        self._buffer = buffer
        self._files = ArchiveFiles(folder)
        self._written: set[str] | None = None
        self._work: asyncio.Task | None = None

    def start(self) -> None:
        """Archive what is consumed, unless that is under way. Raises what the work before it raised."""
        if self._work is not None:
            if not self._work.done():
                return
            self._work.result()
        self._work = asyncio.create_task(self._archive())

    async def finish(self) -> None:
        """Return once everything that is consumed now is archived."""
        if self._work is not None:
            await self._work
        await self._archive()

    async def close(self) -> None:
        """End what is under way. Nothing is lost: what isn't archived yet stays in Redis."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def _archive(self) -> None:
        if self._written is None:
            self._written = await in_thread(self._files.groups)
        await archive(self._buffer, self._files, self._written)
