"""Names by rank, least first, at a cost that hardly grows with how many there are."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Line:
    """`holds` says whether a name still belongs here: one that was added and left is passed over, at its turn."""

    def __init__(self, holds: Callable[[str], bool]) -> None:
        self._holds = holds
        self._heap: list[tuple[Any, str]] = []

    def add(self, rank: Any, name: str) -> None:
        """A name that came, or came back."""
        heappush(self._heap, (rank, name))

    def first(self) -> str | None:
        """The name of least rank; it stays."""
        while self._heap and not self._holds(self._heap[0][1]):
            heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self, most: Any = None) -> str | None:
        """The name of least rank, which leaves; None where that rank is above `most`."""
        name = self.first()
        if name is None or (most is not None and self._heap[0][0] > most):
            return None
        heappop(self._heap)
        return name
