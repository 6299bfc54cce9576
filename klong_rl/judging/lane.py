"""Which request goes to the judge model next, and when: pure decisions, the time is handed in.

Invariants:
- A request goes only if fewer than `concurrent` are under way, and the rate so far is within `requests_per_s`.
- It is one of the most urgent group that has one ready; within a group, the first that came.
- A group's urgency holds for all it has waiting, from the moment it changes.
- After the endpoint said that it is too much (429), nothing goes until it may again.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

CATCH_UP_S = 0.05  # of requests that went late: so much may be made up for, or a busy event loop would slow the rate
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0


class Urgency(NamedTuple):
    """Least first: evaluation, then groups that wait for verdicts alone, then as admitted.

    A group with members that still run is not unblocked by a verdict.
    """

    is_training: bool
    has_open_members: bool
    rank: float


@dataclass(eq=False)
class _Group:
    """What one group has waiting. `came` and the tickets' numbers are of one count: the lower, the earlier."""

    urgency: tuple
    came: int
    waiting: dict[Hashable, int] = field(default_factory=dict)  # ticket to its number
    ready: list[tuple[int, Hashable]] = field(default_factory=list)  # a heap of what may go now; withdrawn ones too


class Lane:
    """The requests to one endpoint. Times are seconds of one monotonic clock.

    What is asked of it costs the same, but for a logarithm, however many groups and requests wait.
    """

    def __init__(self, requests_per_s: float, concurrent: int) -> None:
        self._interval = 1.0 / requests_per_s
        self._concurrent = concurrent
        self._groups: dict[Hashable, _Group] = {}
        self._order: list[
            tuple[tuple, int, int, _Group]
        ] = []  # a heap of (urgency, came, number, group), some outdated
        self._later: list[tuple[float, int, Hashable, _Group]] = []  # a heap of what must not go before a time
        self._numbers = itertools.count()
        self._next_at = -math.inf
        self._under_way = 0

    def bound(self, requests_per_s: float, concurrent: int) -> None:
        """Other bounds from here on; what is under way beyond them goes on."""
        self._interval, self._concurrent = 1.0 / requests_per_s, concurrent

    def rank(self, group: Hashable, urgency: tuple) -> None:
        """Set the urgency of a group, waiting requests included. One that has none has come last."""
        known = self._group(group, urgency)
        if known.urgency != urgency:
            known.urgency = urgency
            self._line_up(known)

    def forget(self, group: Hashable) -> None:
        """A group that asks no more."""
        if group in self._groups and not self._groups[group].waiting:
            del self._groups[group]

    def push(self, ticket: Hashable, group: Hashable, not_before: float = -math.inf) -> None:
        """A request that waits; not to be taken before that time."""
        known, number = self._group(group, (math.inf,)), next(self._numbers)
        known.waiting[ticket] = number
        heappush(self._later, (not_before, number, ticket, known))

    def withdraw(self, ticket: Hashable, group: Hashable) -> None:
        """A request that is wanted no more."""
        if group in self._groups:
            self._groups[group].waiting.pop(ticket, None)

    def take(self, now: float) -> Hashable | None:
        """The request that goes now, or None. Whoever takes one calls `release` when it is over."""
        if self._under_way >= self._concurrent or now < self._next_at:
            return None
        best = self._best(now)
        if best is None:
            return None
        _, ticket = heappop(best.ready)
        del best.waiting[ticket]
        self._under_way += 1
        self._next_at = max(self._next_at, now - CATCH_UP_S) + self._interval
        return ticket

    def release(self) -> None:
        """A request that was taken is over."""
        self._under_way -= 1

    def hold(self, until: float) -> None:
        """Nothing goes before that time."""
        self._next_at = max(self._next_at, until)

    def opens_at(self, now: float) -> float | None:
        """When to call `take` again unless something changes before; None if only a change can help."""
        if self._under_way >= self._concurrent:
            return None
        if self._best(now) is not None:
            return max(self._next_at, now)
        while self._later and not _waits(*self._later[0][1:]):
            heappop(self._later)
        return max(self._later[0][0], self._next_at) if self._later else None

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(group.waiting) for group in self._groups.values())

    def _group(self, name: Hashable, urgency: tuple) -> _Group:
        """The group of this name; one that is new has that urgency."""
        return self._groups.setdefault(name, _Group(urgency, next(self._numbers)))

    def _line_up(self, group: _Group) -> None:
        if group.ready:
            heappush(self._order, (group.urgency, group.came, next(self._numbers), group))

    def _best(self, now: float) -> _Group | None:
        """The most urgent group with a request that may go now, which is then the first of its `ready`."""
        while self._later and self._later[0][0] <= now:
            _, number, ticket, group = heappop(self._later)
            if _waits(number, ticket, group):
                heappush(group.ready, (number, ticket))
                self._line_up(group)
        while self._order:
            urgency, _, _, group = self._order[0]
            while group.ready and not _waits(*group.ready[0], group):
                heappop(group.ready)
            if group.ready and urgency == group.urgency:
                return group
            heappop(self._order)
        return None


def _waits(number: int, ticket: Hashable, group: _Group) -> bool:
    return group.waiting.get(ticket) == number


def delay_s(failures: int, retry_after_s: float, rng: random.Random) -> float:
    """Seconds until a request that failed so many times goes again: doubling, jittered, at least what was asked for."""
    bound = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (failures - 1))
    return max(retry_after_s, bound * rng.uniform(0.5, 1.0))
