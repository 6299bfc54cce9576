"""Which request goes to the judge model next, and when: pure decisions, the time is handed in.

Invariants:
- A request goes only if fewer than `concurrent` are under way, and the rate so far is within `requests_per_s`.
- It is one of the most urgent group that has one ready; within a group, the first that came.
- A group's urgency holds for all it has waiting, from the moment it changes.
- After the endpoint said that it is too much (429), nothing goes until it may again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable
from dataclasses import dataclass, field
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


@dataclass
class _Waiting:
    """What one group has waiting: ticket to the time before which it must not go, first come first."""

    urgency: tuple
    tickets: dict[Hashable, float] = field(default_factory=dict)

    def first(self, now: float) -> Hashable | None:
        return next((ticket for ticket, not_before in self.tickets.items() if not_before <= now), None)


class Lane:
    """The requests to one endpoint. Times are seconds of one monotonic clock."""

    def __init__(self, requests_per_s: float, concurrent: int) -> None:
        self._interval = 1.0 / requests_per_s
        self._concurrent = concurrent
        self._groups: dict[Hashable, _Waiting] = {}
        self._next_at = -math.inf
        self._under_way = 0

    def rank(self, group: Hashable, urgency: tuple) -> None:
        """Set the urgency of a group, waiting requests included. One that has none has come last."""
        self._groups.setdefault(group, _Waiting(urgency)).urgency = urgency

    def forget(self, group: Hashable) -> None:
        """A group that asks no more."""
        if group in self._groups and not self._groups[group].tickets:
            del self._groups[group]

    def push(self, ticket: Hashable, group: Hashable, not_before: float = -math.inf) -> None:
        """A request that waits; not to be taken before that time."""
        self._groups.setdefault(group, _Waiting((math.inf,))).tickets[ticket] = not_before

    def withdraw(self, ticket: Hashable, group: Hashable) -> None:
        """A request that is wanted no more."""
        if group in self._groups:
            self._groups[group].tickets.pop(ticket, None)

    def take(self, now: float) -> Hashable | None:
        """The request that goes now, or None. Whoever takes one calls `release` when it is over."""
        if self._under_way >= self._concurrent or now < self._next_at:
            return None
        ready = [waiting for waiting in self._groups.values() if waiting.first(now) is not None]
        if not ready:
            return None
        best = min(ready, key=lambda waiting: waiting.urgency)
        ticket = best.first(now)
        del best.tickets[ticket]
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
        if any(waiting.first(now) is not None for waiting in self._groups.values()):
            return max(self._next_at, now)
        earliest = min((at for waiting in self._groups.values() for at in waiting.tickets.values()), default=None)
        return None if earliest is None else max(earliest, self._next_at)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(waiting.tickets) for waiting in self._groups.values())


def delay_s(failures: int, retry_after_s: float, rng: random.Random) -> float:
    """Seconds until a request that failed so many times goes again: doubling, jittered, at least what was asked for."""
    bound = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (failures - 1))
    return max(retry_after_s, bound * rng.uniform(0.5, 1.0))
