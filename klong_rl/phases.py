"""How long each of several steps in a row took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping


class Phases:
    """Seconds by name, each from the end of the one before, the first from the making of this."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self._last
        self._last = now


def slowest(answers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The longest time of each phase over those who went through them at once."""
    longest: dict[str, float] = {}
    for seconds in answers:
        for name, took in seconds.items():
            longest[name] = max(took, longest.get(name, 0.0))
    return longest
