"""Where a rank's windows come from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from klong_rl.buffer import Buffer, BufferAddress
from klong_rl.types import Window


class BufferSource:
    """The windows of a run's buffer by id, for a caller without an event loop. It connects on its first call.

    Raises the buffer's errors: `Unavailable` after the address's deadline, `Unknown` for an id that isn't there.
    """

    def __init__(self, address: BufferAddress):
        self._address = address
        self._loop = asyncio.Runner()  # one loop for good: the buffer's connections belong to it
        self._buffer: Buffer | None = None

    def __call__(self, ids: Sequence[str]) -> list[Window]:
        return self._loop.run(self._windows(ids))

    async def _windows(self, ids: Sequence[str]) -> list[Window]:
        if self._buffer is None:
            self._buffer = await Buffer.connect(self._address)
        return await self._buffer.windows(ids)
