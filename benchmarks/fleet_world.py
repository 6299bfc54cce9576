"""The world of benchmarks.fleet_simulation: virtual time, engines that slow down as they fill, long-tailed episodes.

What is assumed of it stands in `World`, in one place. Nothing here decides anything: that is the program's own rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any


@dataclass(frozen=True)
class World:
    """Sizes grow in proportion to `sandboxes`, so that per sandbox all worlds are alike. Seconds, unless said."""

    sandboxes: int = 10_000
    group_size: int = 8
    max_staleness: int = 8
    steps: int = 24  # of each of the three stages: 2, 4 and 6 hours
    learner_s: float = 900.0
    median_work_s: float = 2700.0  # of an episode, on an empty engine; log-normal
    sigma: float = 1.0  # of its logarithm: one in 40 works seven times the median
    set_up_s: float = 20.0
    window_s: float = 1200.0  # of work, in one training window
    leaves: int = 4  # requests to the judge model, for one verdict
    judge_takes_s: float = 2.0
    sampling: float = 0.5  # of the work; the rest is commands
    holds: int = 8  # contexts of usual length that an engine's KV cache holds
    fits: int = 5  # contexts of the greatest length
    half_speed: float = 24.0  # more requests at once, at which each is sampled half as fast
    recompute: float = 0.5  # of the engine's speed lost for each cacheful of requests that wait: they were preempted
    seed: int = 0

    @property
    def engines(self) -> int:
        return max(1, round(self.sandboxes * 512 / 10_000))

    @property
    def groups_per_step(self) -> int:
        return max(1, self.sandboxes // 40)

    @property
    def judges(self) -> int:
        """Episodes judged at once."""
        return max(1, self.sandboxes // 50)

    @property
    def requests_per_s(self) -> float:
        return 12 * self.sandboxes / 10_000


@lru_cache(maxsize=4096)
def speed(world: World, episodes: int) -> tuple[float, int, float]:
    """Of an engine with so many episodes at work: seconds of work an episode does in a second; the requests that wait;
    the share of the KV cache in use.

    Each episode samples, then runs a command, in turn. Sampled with b at once, a request runs at (1 + h) / (b + h) of
    its speed alone. b is where as many begin to sample as end, but no more than the cache holds.
    """
    if episodes == 0:
        return 1.0, 0, 0.0
    part, h, low, high = world.sampling, world.half_speed, 0.0, float(episodes)
    for _ in range(40):
        b = (low + high) / 2
        slow = part * (b + h) / (1 + h)
        low, high = (b, high) if episodes * slow / (1 - part + slow) > b else (low, b)
    slow = part * (low + h) / (1 + h)
    if low <= world.holds:
        return 1 / (1 - part + slow), 0, low / world.holds
    served = world.holds * (1 + h) / (world.holds + h)
    rate, waiting = served / (episodes * part), 0.0
    for _ in range(20):
        waiting = max(0.0, episodes * (1 - rate * (1 - part)) - world.holds)
        rate = (rate + served / (1 + world.recompute * waiting / world.holds) / (episodes * part)) / 2
    return rate, round(waiting), 1.0


class Events:
    """What happens next. `at` schedules a call; `run` makes all calls, in order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple]] = []
        self._number = 0

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._heap, (time, self._number, call, arguments))

    def run(self, until: Callable[[], bool]) -> None:
        """Until that holds. RuntimeError if nothing is left to happen before."""
        while not until():
            if not self._heap:
                raise RuntimeError(f"nothing happens any more after {self.now:.0f} s")
            self.now, _, call, arguments = heappop(self._heap)
            call(*arguments)


class Engine:
    """Shares its speed among its episodes. `done(episode)` is called as each has done its work."""

    def __init__(self, name: str, world: World, events: Events, done: Callable[[str], None]) -> None:
        self.name = name
        self.slots = 0
        self.held = 0  # episodes, those that are being set up included
        self.ended = 0
        self._world, self._events, self._done = world, events, done
        self._work: list[tuple[float, str]] = []  # a heap of (work of the engine at which it is done, episode)
        self._at_work: dict[str, float] = {}  # episode: the engine's work when it began
        self._worked, self._since, self._stamp = 0.0, 0.0, 0

    @property
    def load(self) -> tuple[float, int, float]:
        return speed(self._world, len(self._at_work))

    def begin(self, episode: str, work_s: float) -> None:
        self._catch_up()
        self._at_work[episode] = self._worked
        heappush(self._work, (self._worked + work_s, episode))
        self._expect()

    def end(self, episode: str) -> float:
        """It is over, whether its work is done or not; seconds of work that are."""
        self._catch_up()
        worked = self._worked - self._at_work.pop(episode)
        self.held -= 1
        self.ended += 1
        self._expect()
        return worked

    def _catch_up(self) -> None:
        self._worked += (self._events.now - self._since) * self.load[0]
        self._since = self._events.now

    def _expect(self) -> None:
        while self._work and self._work[0][1] not in self._at_work:
            heappop(self._work)
        self._stamp += 1
        if self._work:
            left_s = max(0.0, self._work[0][0] - self._worked) / self.load[0]
            self._events.at(self._events.now + left_s, self._finish, self._stamp)

    def _finish(self, stamp: int) -> None:
        if stamp == self._stamp:
            self._done(heappop(self._work)[1])


def work_s(world: World, draw: random.Random) -> float:
    """Of one episode."""
    return world.median_work_s * draw.lognormvariate(0.0, world.sigma)
