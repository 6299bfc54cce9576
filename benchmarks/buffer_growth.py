"""What a transition costs while the buffer holds 100 to 100,000 episodes, a fifth of them in each state.

Groups are of one episode. At each size episodes go the whole way, each transition taking what is most urgent: as many
enter a state as leave it, so the buffer keeps its size. Each size has a server of its own, and they take turns, so that
what else the host does falls on all. Medians of microseconds: what the caller waits, and what Redis is busy with it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import redis
from buffer_ways import spec
from rich.console import Console
from rich.table import Table

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.types import Outcome, Segment, Turn, Verdict, Window

LEAST, FACTOR = 100, 10  # episodes held at first, and how much more each time
STATES = 5  # queued, running, sealed, ready, consumed
CYCLES, WARM_UP = 300, 30
AT_ONCE = 500  # calls under way while the buffer is filled
MEASURED = ("caller_us", "redis_us")
FLAT = 1.5  # the bar: how much more a transition may cost at any size than at LEAST

SUBMITTED, VERDICT = Outcome(kind="submitted"), Verdict(score=1.0)
_ACTION = np.arange(16, dtype=np.int32)
_TURN = Turn(
    index=0,
    context_start=0,
    action_A=_ACTION,
    logprobs_A=np.zeros(16, np.float32),
    versions=((1, 16),),
    observation_O=_ACTION,
    command="ls",
)


def _window(group: str) -> Window:
    return Window(
        id=f"{group}/0",
        episode=group,
        group=group,
        stage=1,
        tokens_T=_ACTION,
        targets_T=np.ones(16, np.uint8),
        logprobs_T=np.zeros(16, np.float32),
        versions=((1, 16),),
    )


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    calls, answers = list(calls), []
    for i in range(0, len(calls), AT_ONCE):
        answers += await asyncio.gather(*calls[i : i + AT_ONCE])
    return answers


class Population:
    """Episodes of one run, moved along by real transitions; `held` in all, STATES * n with n in each state."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.held = self.admitted = self.step = 0
        self.running: dict[str, int] = {}  # episode -> epoch, in the order in which they were claimed
        self.sealed: dict[str, int] = {}

    def _next(self) -> str:
        self.admitted += 1
        return f"episode-{self.admitted:09}"

    @staticmethod
    def _oldest(of: dict[str, int], n: int) -> list[tuple[str, int]]:
        return [(episode, of.pop(episode)) for episode in list(of)[:n]]

    async def grow_to(self, held: int) -> None:
        new, b = (held - self.held) // STATES, self.buffer
        await _all(b.admit(spec(self._next())) for _ in range(STATES * new))
        claims = await _all(b.claim("bench") for _ in range((STATES - 1) * new))
        self.running |= {claim.spec.id: claim.epoch for claim in claims}
        moved = self._oldest(self.running, (STATES - 2) * new)
        await _all(b.append(i, e, Segment(episode=i, epoch=e, seq=0, turns=(_TURN,))) for i, e in moved)
        await _all(b.seal(i, e, SUBMITTED) for i, e in moved)
        self.sealed |= dict(moved)
        moved = self._oldest(self.sealed, (STATES - 3) * new)
        await _all(b.verdict(i, e, VERDICT) for i, e in moved)
        await _all(b.close_group(i, [_window(i)]) for i, _ in moved)
        for first in range(0, new, AT_ONCE):
            self.step += 1
            await b.lease(self.step, min(AT_ONCE, new - first), oldest_version=0)
            await b.commit(self.step)
        self.held = held

    async def cycle(self, timed: Callable[[str, Awaitable[Any]], Awaitable[Any]]) -> None:
        """One episode enters each state and one leaves it."""
        b = self.buffer
        await timed("admit", b.admit(spec(self._next())))
        claim = await timed("claim", b.claim("bench"))
        self.running[claim.spec.id] = claim.epoch
        ((i, e),) = self._oldest(self.running, 1)
        await timed("intend", b.intend(i, e, 0, _TURN))
        await timed("append", b.append(i, e, Segment(episode=i, epoch=e, seq=0, turns=(_TURN,))))
        await timed("seal", b.seal(i, e, SUBMITTED))
        self.sealed[i] = e
        judged = (await timed("next_to_judge", b.next_to_judge("bench"))).spec.id
        await timed("verdict", b.verdict(judged, self.sealed.pop(judged), VERDICT))
        await timed("close_group", b.close_group(judged, [_window(judged)]))
        self.step += 1
        await timed("lease", b.lease(self.step, 1, oldest_version=0))
        await timed("commit", b.commit(self.step))
        (oldest,) = await b.consumed(1)
        await timed("forget", b.forget(oldest))


async def measure(most: int) -> dict[str, dict[int, dict[str, float]]]:
    """transition -> episodes held -> {"caller_us", "redis_us"}. A server for each size; they take turns."""
    sizes = [held for held in (LEAST * FACTOR**i for i in range(9)) if held <= most]
    times: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        populations = {}
        for held in sizes:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(EmbeddedRedis(Path(folder)))
            buffer = await stack.enter_async_context(await Buffer.connect(BufferAddress(server.url, "growth")))
            admin = stack.enter_context(redis.from_url(server.url))
            populations[held] = Population(buffer), admin
            await populations[held][0].grow_to(held)
        for i in range(-WARM_UP, CYCLES):
            for held, (population, admin) in populations.items():
                for name, pair in (await _time(population, admin)).items():
                    if i >= 0:
                        times[name][held].append(pair)
    return {
        name: {held: dict(zip(MEASURED, map(statistics.median, zip(*some, strict=True)), strict=True))
               for held, some in by_size.items()}
        for name, by_size in times.items()
    }  # fmt: skip


async def _time(population: Population, admin: redis.Redis) -> dict[str, tuple[float, float]]:
    """What each transition of one cycle took: MEASURED."""
    times: dict[str, tuple[float, float]] = {}

    def busy_us() -> int:
        stats = admin.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in ("evalsha", "mset"))

    async def timed(name: str, call: Awaitable[Any]) -> Any:
        before = busy_us()
        started = time.perf_counter()
        answer = await call
        caller_us = (time.perf_counter() - started) * 1e6
        times[name] = caller_us, busy_us() - before
        return answer

    await population.cycle(timed)
    return times


def show(console: Console, found: dict[str, dict[int, dict[str, float]]]) -> bool:
    """Prints the table; True if every transition is flat."""
    sizes = list(next(iter(found.values())))
    title = "A transition, us: caller (Redis), by episodes held"
    table = Table("transition", *(f"{held:,}" for held in sizes), "most / least", "", title=title)
    held = True
    for name, by_size in found.items():
        times = [by_size[size]["caller_us"] for size in sizes]
        growth = max(times) / times[0]
        held &= growth <= FLAT
        shown = (f"{one['caller_us']:.0f} ({one['redis_us']:.0f})" for one in by_size.values())
        table.add_row(name, *shown, f"{growth:.2f}", "flat" if growth <= FLAT else "GROWS")
    console.print(table)
    return held
