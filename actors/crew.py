"""Many jobs at once in one event loop: take one while there is room, wait while there is none to take.

take() -> job or None        None: nothing to do now; asked again after IDLE_S, or when a job ends
work(job)                    runs beside the others; what it raises ends the crew, and so is seen
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

IDLE_S = 0.05  # between two looks at an empty queue: short against a turn, long against a look
STOP_DEADLINE_S = 60.0


class Crew:
    """At most `size` jobs at a time, until `allow` says otherwise. `run` returns after `stop`, with every job ended or
    cancelled.
    """

    def __init__(self, size: int, take: Callable[[], Awaitable[Any | None]], work: Callable[[Any], Awaitable[None]]):
        self._size = size
        self._take = take
        self._work = work
        self._jobs: set[asyncio.Task] = set()
        self.ended = 0  # jobs, since the crew began
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    def allow(self, size: int) -> None:
        """From here on so many jobs at a time, none at all with 0; what is under way beyond that goes on."""
        self._size = size

    @property
    def busy(self) -> int:
        """Jobs under way."""
        return len(self._jobs)

    async def run(self) -> None:
        """Work until `stop`. Raises what a job raised, after cancelling the others."""
        self._ended.clear()
        try:
            while not self._stopping.is_set():
                job = await self._take() if len(self._jobs) < self._size else None
                if job is not None:
                    self._jobs.add(asyncio.ensure_future(self._work(job)))
                else:
                    await self._wait_a_little()
                self._collect()
        finally:
            for task in self._jobs:
                task.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)
            self._jobs.clear()
            self._ended.set()

    async def stop(self) -> None:
        """End `run` and wait for it; jobs under way are cancelled, and clean up after themselves."""
        self._stopping.set()
        async with asyncio.timeout(STOP_DEADLINE_S):
            await self._ended.wait()

    async def _wait_a_little(self) -> None:
        if len(self._jobs) < self._size or not self._jobs:
            await asyncio.sleep(IDLE_S)
        else:
            await asyncio.wait(self._jobs, timeout=IDLE_S * 4, return_when=asyncio.FIRST_COMPLETED)

    def _collect(self) -> None:
        done = {task for task in self._jobs if task.done()}
        self._jobs -= done
        self.ended += len(done)
        for task in done:
            task.result()
