"""New episodes go into the buffer for as long as it has room; while it has none, that is said once in a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from klong_rl.buffer import Buffer, Full
from klong_rl.seldom import Seldom
from klong_rl.types import EpisodeSpec


class Admission:
    """`warn` is told why nothing new begins."""

    def __init__(self, buffer: Buffer, warn: Callable[[str], None]) -> None:
        self._buffer = buffer
        self._warn = warn
        self._full = Seldom()

    async def admit(self, specs: Sequence[EpisodeSpec]) -> bool:
        """False if there was no room for all of them. Call it again with the same ones: those it took are known."""
        try:
            for spec in specs:
                await self._buffer.admit(spec)
        except Full as full:
            if self._full.due():
                self._warn(f"no new episodes for now: {full}")
            return False
        return True
