"""Sandboxes of bare processes whose commands take their time, in the stages that are given.

How long is log-normal, drawn from the episode's name and the number of the command alone, so that the same episode
meets the same load however it is run; the longest, three sigmas out, is LONGEST times the median. Held-out tasks and
the other stages are not slowed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from klong_rl.schedule import stage_of
from sandboxes.process import ProcessSandboxes

LONGEST = 20.0  # times the median
SIGMAS = 3.0  # where that is


def command_times(median_s: float, episode: str) -> Iterator[float]:
    """Seconds that each command of an episode takes, endlessly."""
    rng = random.Random(f"command times/{episode.partition('-')[2]}")  # whatever the stage
    while True:
        yield median_s * min(LONGEST, math.exp(rng.gauss(0.0, math.log(LONGEST) / SIGMAS)))


class SlowSandbox:
    """A sandbox, whose commands sleep first."""

    def __init__(self, sandbox: Any, times: Iterator[float]) -> None:
        self._sandbox = sandbox
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)

    async def exec(self, command: str, **options: Any) -> Any:
        return await self._sandbox.exec(f"sleep {next(self._times):.3f}; {command}", **options)


class SlowProcessSandboxes(ProcessSandboxes):
    """The sandboxes of one run; training episodes of `stages` are slowed."""

    def __init__(self, run: str, *, median_s: float, stages: Sequence[int], **options: Any) -> None:
        super().__init__(run, **options)
        self._median_s, self._stages = median_s, frozenset(stages)

    async def create(self, episode: str, *arguments: Any) -> Any:
        sandbox = await super().create(episode, *arguments)
        if episode.startswith("eval-") or stage_of(episode) not in self._stages:
            return sandbox
        return SlowSandbox(sandbox, command_times(self._median_s, episode))
