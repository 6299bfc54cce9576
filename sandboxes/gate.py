"""How much is asked of one Docker daemon at a time: a bound on creations that follows how the daemon keeps up.

A creation is three requests (create, start, exec) and most of what a daemon ever has to do. The bound works as TCP's
congestion window does: a creation in good time raises it slowly, one that is slow or fails halves it. So an overloaded
daemon is left to recover, and each of many processes that share it finds its part.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from klong_rl.failures import InfrastructureFailure

SLOW_TIMES = 8.0  # the quickest creation: more than as many at once as the bound allows on a few cores
SLOW_S = 2.0  # and at least this long, five times a creation on an idle host
REST_S, REST_AT_MOST_S = 1.0, 60.0  # without spare work after a failure, doubled each time in a row


class Pace:
    """How many creations at a time, between 1 and `most`, from the seconds that the last ones took."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._allowed = float(most)
        self._quickest_s = float("inf")
        self._rest_s = REST_S
        self.rests_until = float("-inf")  # on the clock of `now`; for work that nobody waits for

    @property
    def limit(self) -> int:
        return int(self._allowed)

    def done(self, seconds: float) -> None:
        """A creation came to its end after `seconds`."""
        self._quickest_s = min(self._quickest_s, seconds)
        self._rest_s = REST_S
        if seconds > max(SLOW_S, SLOW_TIMES * self._quickest_s):
            self._allowed = max(1.0, self._allowed / 2)
        else:
            self._allowed = min(self._most, self._allowed + 1 / self._allowed)

    def failed(self, now: float) -> None:
        """A creation failed at the time `now`, in seconds of any clock that only grows."""
        self._allowed = max(1.0, self._allowed / 2)
        self.rests_until = now + self._rest_s
        self._rest_s = min(REST_AT_MOST_S, 2 * self._rest_s)


class Gate:
    """Lets creations through, first come first served, as many at a time as the pace allows."""

    def __init__(self, most: int) -> None:
        self.pace = Pace(most)
        self._busy = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def spare(self) -> int:
        """How many creations that nobody waits for may be under way: half of the bound is left to the others."""
        rests = time.monotonic() < self.pace.rests_until
        crowded = self._queue or self._busy >= self.pace.limit
        return 0 if rests or crowded else max(1, self.pace.limit // 2)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One creation. Its time, or an infrastructure failure of it, sets the pace of the next ones."""
        await self._enter()
        began = time.monotonic()
        try:
            yield
            self.pace.done(time.monotonic() - began)
        except InfrastructureFailure:
            self.pace.failed(time.monotonic())
            raise
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self._busy < self.pace.limit and not self._queue:
            self._busy += 1
            return
        admitted = asyncio.get_running_loop().create_future()
        self._queue.append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():  # let in, and cancelled before it could begin
                self._leave()
            raise

    def _leave(self) -> None:
        self._busy -= 1
        while self._queue and self._busy < self.pace.limit:
            admitted = self._queue.popleft()
            if not admitted.done():
                self._busy += 1
                admitted.set_result(None)
