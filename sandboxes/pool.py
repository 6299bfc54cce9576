"""Sandboxes made ahead: an episode that asks for one gets it in milliseconds, and another is made in its place.

What to keep ready is what was asked for last: of the last `size` creations, the share that each kind (image and
limits) had is its share of the pool. Nothing is made before the first creation, and nothing for a process that only
adopts.

    take(kind) ──▶ one that is ready, or None: make it now
       │ notes the kind, wakes
       ▼
    keeper: plan ──▶ make what is missing, as far as the gate has room to spare
              ▲ └──▶ drop what takes its room
              └── one is made, one failed, something is missing still

A kind that can't be made is forgotten until it is asked for again, and the creation that asks says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from klong_rl.failures import EpisodeFailure
from sandboxes.gate import Gate

log = logging.getLogger(__name__)

LOOK_AROUND_EVERY_S = 60.0
LOOK_AT_GATE_EVERY_S = 0.1  # while something is missing: a creation takes longer
CLOSE_S = 10.0  # for creations under way to come to their end


class Spare(Protocol):
    """A sandbox of no episode."""

    def ended(self) -> bool:
        """Whether its shell is known to be gone."""

    async def close(self) -> None: ...


K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound=Spare)


def shares(recent: Iterable[K], size: int) -> Counter[K]:
    """`size` places in proportion to how often each kind is in `recent`: largest remainders, then the newest first.

    >>> shares(["a", "b", "b"], 4)
    Counter({'b': 3, 'a': 1})
    """
    asked = Counter(reversed(list(recent)))  # in the order of the newest
    places = Counter({kind: size * n // asked.total() for kind, n in asked.items()})
    by_remainder = sorted(asked, key=lambda kind: size * asked[kind] % asked.total(), reverse=True)
    places.update(by_remainder[: size - places.total()])
    return +places


class Plan(NamedTuple):
    make: Counter
    drop: Counter


def plan(want: Counter[K], ready: Counter[K], making: Counter[K], size: int) -> Plan:
    """What to make, and what to drop so that ready and making stay within `size`. Nothing is dropped but for room."""
    missing = want - (ready + making)
    surplus = ready & ((ready + making) - want)
    room = size - (ready + making).total()
    drop = first(surplus, missing.total() - room)
    return Plan(first(missing, room + drop.total()), drop)


def first(counter: Counter[K], n: int) -> Counter[K]:
    """`n` of what `counter` counts; none where `n` is below 0."""
    return Counter(list(counter.elements())[: max(0, n)])


class WarmPool(Generic[K, S]):
    """At most `size` sandboxes of one host. `make` makes one of a kind; `look_around` removes what others left."""

    def __init__(
        self,
        size: int,
        gate: Gate,
        make: Callable[[K], Awaitable[S]],
        look_around: Callable[[], Awaitable[None]],
    ) -> None:
        self._size, self._gate, self._make, self._look_around = size, gate, make, look_around
        self._recent: deque[K] = deque(maxlen=size)
        self._ready: defaultdict[K, deque[S]] = defaultdict(deque)
        self._making: Counter[K] = Counter()
        self._under_way: set[asyncio.Task] = set()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task | None = None
        self._fault: BaseException | None = None

    def ready(self, kind: K) -> int:
        """How many of a kind wait to be taken."""
        return len(self._ready[kind])

    def take(self, kind: K) -> S | None:
        """One that is ready, to be the caller's; None where there is none. Either way the kind is wanted more."""
        if self._size == 0:
            return None
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        elif self._keeper.done():
            self._keeper.result()
        self._recent.append(kind)
        self._wake.set()
        while self._ready[kind]:
            spare = self._ready[kind].popleft()
            if not spare.ended():
                return spare
            self._begin(self._drop(spare))
        return None

    async def close(self) -> None:
        """Remove all that is ready; creations under way come to their end first."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_S)
        self._recent.clear()
        await asyncio.gather(*(self._drop(spare) for spares in self._ready.values() for spare in spares))
        self._ready.clear()

    async def _keep(self) -> None:
        looked = float("-inf")
        while self._fault is None:
            self._wake.clear()
            behind = self._tend()
            if time.monotonic() - looked >= LOOK_AROUND_EVERY_S:
                looked = time.monotonic()
                self._begin(self._look_around())
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AT_GATE_EVERY_S if behind else LOOK_AROUND_EVERY_S):
                    await self._wake.wait()
        raise self._fault

    def _tend(self) -> bool:
        """Begin what is to be done now; whether something is left for later."""
        for spares in self._ready.values():
            for spare in [spare for spare in spares if spare.ended()]:  # its host was restarted
                spares.remove(spare)
                self._begin(self._drop(spare))
        ready = Counter({kind: len(spares) for kind, spares in self._ready.items()})
        make, drop = plan(shares(self._recent, self._size), ready, self._making, self._size)
        now = first(make, self._gate.spare - self._making.total())
        for kind in first(drop, now.total()).elements():
            self._begin(self._drop(self._ready[kind].popleft()))
        for kind in now.elements():
            self._making[kind] += 1
            self._begin(self._fill(kind))
        return now != make

    async def _fill(self, kind: K) -> None:
        try:
            self._ready[kind].append(await self._make(kind))
        except EpisodeFailure as failure:
            log.warning("no sandbox can be made ahead: %s", failure)
            self._recent = deque((other for other in self._recent if other != kind), self._size)
        finally:
            self._making[kind] -= 1
            self._wake.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()  # a mistake in the program: the next to take a sandbox learns of it
            self._wake.set()

    async def _drop(self, spare: S) -> None:
        try:
            await spare.close()
        except EpisodeFailure as failure:
            log.warning("a sandbox made ahead stays until the run ends: %s", failure)
