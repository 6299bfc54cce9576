"""The deadlines of one grading: its own work, and its waiting for the judge model, are told apart.

A queue in front of the judge model is not the reward's doing, so `grading_timeout_s` stands still while a request is
asked; the waiting has a deadline of its own, `wait_s` in all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager

from klong_rl.failures import InfrastructureFailure


class GradingClock:
    """Made for one grading, in the task that does it."""

    def __init__(self, grading_s: float, wait_s: float, waited_for: Callable[[], str]) -> None:
        self._grading_s, self._wait_s = grading_s, wait_s
        self._left_s = {True: wait_s, False: grading_s}  # by whether it waits
        self._waited_for = waited_for
        self._asking = 0
        self._is_waiting = False  # as `_asking` says, up to the moment at which a deadline passed
        self._since = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises InfrastructureFailure, which says what took too long, in the block."""
        try:
            async with asyncio.timeout(self._grading_s) as self._timeout:
                self._since = self._now()
                yield
        except TimeoutError as error:
            if not self._timeout.expired():
                raise
            if self._is_waiting:
                what = f"waited over judge.wait_s={self._wait_s:g} for {self._waited_for()}"
            else:
                what = f"grading took over judge.grading_timeout_s={self._grading_s:g}"
            raise InfrastructureFailure(what) from error

    @contextmanager
    def asking(self):
        """While the judge model is asked; several at once count once."""
        self._change(+1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, by: int) -> None:
        self._asking += by
        waits = self._asking > 0
        if waits == self._is_waiting or self._timeout.expired():
            return
        now = self._now()
        self._left_s[self._is_waiting] -= now - self._since
        self._since, self._is_waiting = now, waits
        self._timeout.reschedule(now + self._left_s[waits])

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
