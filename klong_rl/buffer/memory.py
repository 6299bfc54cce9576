"""Back-pressure by memory: new episodes wait, so that those under way can always finish. Pure but for the clock."""

from __future__ import annotations

import time

MIB = 1 << 20
# What runs goes on writing above the mark: the rest of its segments, then its windows, which hold its tokens once more
# until the group is archived. A rewrite of the append-only file copies the pages that are written meanwhile on top.
HIGH_WATER = 0.8
LOOK_EVERY_S = 1.0  # memory moves by some MB a second; a look is a round trip


class HighWaterMark:
    """What one client knows of the server's memory. `memory_mb`: the buffer's share in MiB; 0 for no mark."""

    def __init__(self, memory_mb: int):
        self._memory_mb = memory_mb
        self._next_look = float("-inf")
        self._used = self._mark = 0

    def look_is_due(self) -> bool:
        """True once every LOOK_EVERY_S; the caller then looks, and tells what it `saw`."""
        if self._memory_mb == 0 or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + LOOK_EVERY_S
        return True

    def saw(self, used: int, limit: int) -> None:
        """Bytes that the server uses, and its own limit (0: none), which counts where it is lower."""
        self._used, share = used, self._memory_mb * MIB
        self._mark = int(HIGH_WATER * (min(share, limit) if limit else share))

    def reason_to_wait(self) -> str:
        """Why no new episode may begin now; empty while one may."""
        if self._used <= self._mark:
            return ""
        return (
            f"uses {self._used // MIB} MB, above the high-water mark of {self._mark // MIB} MB ({HIGH_WATER:g} of "
            f"buffer.memory_mb={self._memory_mb}, or of its maxmemory if that is lower); new episodes wait until "
            "training has freed some. If that lasts, raise buffer.memory_mb, or lower actors.episodes"
        )
