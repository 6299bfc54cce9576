"""What would be said many times a second is said once in a while."""

from __future__ import annotations

import time

EVERY_S = 60.0  # often enough that a person who looks at the run finds it on the screen


class Seldom:
    """`due()` is True at first, and again once `every_s` have passed since it last was."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._next = float("-inf")

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True
