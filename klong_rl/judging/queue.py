"""The lane to one endpoint in an event loop: `async with queue.turn(group)` waits until it is this request's turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from klong_rl.judging.lane import Lane


class RequestQueue:
    """One caller's `turn` after the other, as `lane` decides. Cancelling a caller takes its request out."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._lane.waiting

    def bound(self, requests_per_s: float, concurrent: int) -> None:
        """Other bounds from here on."""
        self._lane.bound(requests_per_s, concurrent)

    def rank(self, group: Hashable, urgency: tuple) -> None:
        """See `Lane.rank`."""
        self._lane.rank(group, urgency)
        self._advance()

    def forget(self, group: Hashable) -> None:
        """See `Lane.forget`."""
        self._lane.forget(group)

    def hold(self, seconds: float) -> None:
        """Nothing goes for so long: the endpoint said that it is too much."""
        self._lane.hold(time.monotonic() + seconds)
        self._advance()

    @asynccontextmanager
    async def turn(self, group: Hashable, after_s: float = 0.0) -> AsyncIterator[None]:
        """One request, from its turn to its end; not before `after_s` seconds from now."""
        ticket = asyncio.get_running_loop().create_future()
        self._lane.push(ticket, group, time.monotonic() + after_s)
        self._advance()
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():  # its turn came in the same moment
                self._lane.release()
            self._lane.withdraw(ticket, group)
            self._advance()
            raise
        try:
            yield
        finally:
            self._lane.release()
            self._advance()

    def _advance(self) -> None:
        """Let go all that may, and look again when the next may."""
        while (ticket := self._lane.take(time.monotonic())) is not None:
            if ticket.done():  # its caller was cancelled, and hasn't run since
                self._lane.release()
            else:
                ticket.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        opens_at = self._lane.opens_at(now)
        if opens_at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, opens_at - now), self._advance)
