"""Where an episode's turns go as they happen: the write-ahead of each action, then the turn.

intend(turn) ──▶ the command runs ──▶ append(turn with its observation)
                    │ whoever ran it dies
                    └─▶ the next holder finds the intended turn and appends it as interrupted (actors.takeover)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from actors.snapshots import make_room, take
from klong_rl.buffer import Buffer, Claim, EpisodeLimits, OutOfSequence
from klong_rl.failures import InfrastructureFailure
from klong_rl.types import Segment, Turn

log = logging.getLogger(__name__)

T = TypeVar("T")


class Journal(Protocol):
    """What the agent tells of an episode. When a call returns, a crash of the caller no longer loses it."""

    async def intend(self, turn: Turn) -> None:
        """The action of `turn` is sampled; its command has not run."""

    async def append(self, turn: Turn) -> EpisodeLimits | None:
        """`turn` is finished. Answers the episode's limits if they were extended."""


class MemoryJournal:
    """Turns in a list: for an episode that needs to survive nothing."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.intended: list[Turn] = []

    async def intend(self, turn: Turn) -> None:
        self.intended.append(turn)

    async def append(self, turn: Turn) -> EpisodeLimits | None:
        self.turns.append(turn)
        return None


class BufferJournal:
    """Each turn a segment in the buffer; now and then a snapshot of the sandbox beside it.

    `turns` are those that are there already. A Redis that comes back without its last second (docs/buffer.md) has lost
    turns whose commands have run: they are sent again, from here. `snapshot_every_s` counts wall-clock seconds between
    two snapshots; 0 takes none.
    """

    def __init__(
        self,
        buffer: Buffer,
        sandboxes: Any,
        claim: Claim,
        prefix_P: np.ndarray,
        sandbox: Any,
        turns: Sequence[Turn],
        snapshot_every_s: float,
    ) -> None:
        self._buffer = buffer
        self._sandboxes = sandboxes
        self._episode, self._epoch = claim.spec.id, claim.epoch
        self._prefix_P = prefix_P
        self._sandbox = sandbox
        self._snapshot_every_s = snapshot_every_s
        self._snapshot_taken = time.monotonic()
        self._turns = list(turns)

    @property
    def n_segments(self) -> int:
        return len(self._turns)

    async def intend(self, turn: Turn) -> None:
        await self._after_what_is_missing(lambda: self._buffer.intend(self._episode, self._epoch, turn.index, turn))

    async def append(self, turn: Turn) -> EpisodeLimits | None:
        limits = await self._after_what_is_missing(lambda: self._append(turn))
        self._turns.append(turn)
        if self._snapshot_every_s and time.monotonic() - self._snapshot_taken >= self._snapshot_every_s:
            await self._try_snapshot()
        return limits

    async def _append(self, turn: Turn) -> EpisodeLimits | None:
        prefix_P = self._prefix_P if turn.index == 0 else None
        segment = Segment(episode=self._episode, epoch=self._epoch, seq=turn.index, turns=(turn,), prefix_P=prefix_P)
        return await self._buffer.append(self._episode, self._epoch, segment)

    async def _after_what_is_missing(self, write: Callable[[], Awaitable[T]]) -> T:
        try:
            return await write()
        except OutOfSequence as gap:
            missing = self._turns[gap.expected :]
            log.warning("Redis lost the last %d turns of episode %s; they are sent again", len(missing), self._episode)
            for turn in missing:
                await self._append(turn)
            return await write()

    async def _try_snapshot(self) -> None:
        self._snapshot_taken = time.monotonic()
        try:
            await make_room(self._buffer, self._sandboxes, self._sandbox)
            await take(self._buffer, self._sandboxes, self._sandbox, self._episode, self._epoch, self.n_segments)
        except InfrastructureFailure as failure:
            log.warning("episode %s goes on without a new snapshot: %s", self._episode, failure)
