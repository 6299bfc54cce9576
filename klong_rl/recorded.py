"""Recorded rollouts in the place of actors: a run trains on what another run sampled, in the order it admits episodes.

    RUN/archive/*.parquet ─▶ claim ─▶ append each turn ─▶ seal ─▶ verdict ─▶ close the group ─▶ windows ready

With the same seed two such runs train the same windows in the same steps, whatever the machines' speed: a run whose
learner was killed must end with the weights of one that was not, bit for bit. It also serves to compare objectives or
learning rates on the same data. No engine, sandbox or judge takes part, so nothing is sampled or scored here; an
evaluation plays back the recorded scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from msgspec.structs import replace

from klong_rl.buffer import Buffer, Claim
from klong_rl.buffer.archive import turn_of
from klong_rl.errors import UserError
from klong_rl.groups import ToWindows
from klong_rl.types import Outcome, Segment, Turn, Verdict

OWNER = "recording"
LOOK_S = 0.05  # between two looks at an empty queue


@dataclass
class RecordedEpisode:
    """One episode as an archive has it."""

    prefix_P: np.ndarray | None
    turns: list[Turn]
    outcome: Outcome | None
    verdict: Verdict | None
    dropped: str


def read_recording(archive: Path) -> dict[str, RecordedEpisode]:
    """The episodes of an archive by id. UserError where there is none."""
    if not list(archive.glob("*.parquet")):
        raise UserError(f"rollout.recorded={archive} holds no archive; name the archive folder of a run, RUN/archive")
    table = ds.dataset(archive, format="parquet").to_table()
    episodes: dict[str, RecordedEpisode] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["episode"], -1 if row["turn"] is None else row["turn"])):
        if row["episode"] not in episodes:
            episodes[row["episode"]] = _episode(row)
        if row["turn"] is not None:
            # Of no version that is published here: what plays back is as old as this run itself.
            turn = replace(turn_of(row), versions=((1, len(row["action"])),))
            episodes[row["episode"]].turns.append(turn)
    return episodes


def _episode(row: dict[str, Any]) -> RecordedEpisode:
    scored = row["score"] is not None
    return RecordedEpisode(
        prefix_P=None if row["prefix"] is None else np.array(row["prefix"], np.int32),
        turns=[],
        outcome=Outcome(kind=row["outcome"], detail=row["outcome_detail"]) if row["outcome"] else None,
        verdict=Verdict(score=row["score"], parts=dict(row["score_parts"] or ()), evidence=dict(row["evidence"] or ()))
        if scored
        else None,
        dropped=row["dropped"] or "",
    )


class RecordedFleet:
    """In the place of a `klong_rl.fleet.Fleet`: one player, in this process. Its weights are nobody's."""

    def __init__(self, archive: Path, buffer: Buffer, to_windows: ToWindows) -> None:
        self._archive = archive
        self._buffer = buffer
        self._to_windows = to_windows
        self._player: asyncio.Task | None = None
        self._held = False
        self.version = 0

    async def start(self) -> None:
        """Play from here on; nothing to do where it does. Raises UserError for a folder without a recording."""
        if self._player is None:
            recording = await asyncio.to_thread(read_recording, self._archive)
            await self._buffer.abandon("", "the run was launched again")
            self._player = asyncio.create_task(self._play(recording))

    def check(self) -> None:
        """Raise what ended the player."""
        if self._player is not None and self._player.done():
            self._player.result()

    async def publish(self, path: str, version: int) -> dict[str, float]:
        self.version = version
        return {}

    async def logprobs(self, tokens_T: Any) -> list[Any]:
        return []

    async def status(self) -> dict[str, Any]:
        return {"actors": {}, "episodes": 0, "sampled_tokens": 0, "engines": [], "sandboxes": [], "warnings": []}

    @property
    def started(self) -> bool:
        return False  # there is nothing to scale

    def hold(self, held: bool) -> None:
        """Play nothing while held."""
        self._held = held

    async def allow(self, slots: Mapping[str, int]) -> None:
        pass

    async def stop(self) -> list[str]:
        if self._player is not None:
            self._player.cancel()
            await asyncio.gather(self._player, return_exceptions=True)
        return []

    async def _play(self, recording: dict[str, RecordedEpisode]) -> None:
        """One episode after the other: the groups close in the order of their admission."""
        while True:
            while not self._held and (claim := await self._buffer.claim(OWNER)) is not None:
                if claim.spec.id not in recording:
                    raise UserError(
                        f"episode {claim.spec.id} is not in rollout.recorded={self._archive}; record with the same "
                        "seed, curriculum and group size, and at least as many steps"
                    )
                await self._play_episode(claim, recording[claim.spec.id])
                while (group := await self._buffer.next_group_to_close()) is not None:
                    await self._buffer.close_group(group, self._to_windows(await self._buffer.group(group)))
            await asyncio.sleep(LOOK_S)

    async def _play_episode(self, claim: Claim, recorded: RecordedEpisode) -> None:
        episode, epoch = claim.spec.id, claim.epoch
        if recorded.verdict is None:
            await self._buffer.drop(episode, recorded.dropped, epoch)
            return
        for turn in recorded.turns[len(await self._buffer.segments(episode)) :]:
            prefix_P = recorded.prefix_P if turn.index == 0 else None
            segment = Segment(episode=episode, epoch=epoch, seq=turn.index, turns=(turn,), prefix_P=prefix_P)
            await self._buffer.append(episode, epoch, segment)
        await self._buffer.seal(episode, epoch, recorded.outcome)
        await self._buffer.verdict(episode, epoch, recorded.verdict)
