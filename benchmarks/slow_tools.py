"""`python -m benchmarks.slow_tools --median-s 1 [--batches] [key=value ...]`: a launch whose tools take their time.

Every command of a training episode first sleeps, in its container. How long is log-normal, drawn from the episode's
name and the number of the command alone, so that every run of a seed meets the same load; the longest, three sigmas
out, is 20 times the median, and what is longer is cut there. Held-out tasks are not slowed.

`--batches` makes a rival of the launch, one step off: a step's groups are admitted together, once all of the step
before are done, and are sampled while those are trained. Without it, and with `rollout.max_staleness=0`, nothing is
sampled ahead: the other rival, synchronous.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from typing import Any

from klong_rl import launch, services, training
from klong_rl.cli import run_main
from klong_rl.schedule import OUTSTANDING
from klong_rl.supply import Supply
from sandboxes.docker import DockerSandboxes

LONGEST = 20.0  # times the median
SIGMAS = 3.0  # where that is
HELD_OUT = "eval-"  # how the names of such episodes begin


def tool_times(median_s: float, seed: int, episode: str) -> Iterator[float]:
    """Seconds that each command of an episode takes, endlessly."""
    rng = random.Random(f"tool times/{seed}/{episode}")
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


class SlowSandboxes(DockerSandboxes):
    """The sandboxes of one run. A judge runs no command of the agent's, so what it adopts is as it was."""

    def __init__(self, run: str, *, median_s: float, seed: int, **options: Any) -> None:
        super().__init__(run, **options)
        self._median_s, self._seed = median_s, seed

    async def create(self, episode: str, *arguments: Any) -> Any:
        sandbox = await super().create(episode, *arguments)
        if episode.startswith(HELD_OUT):
            return sandbox
        return SlowSandbox(sandbox, tool_times(self._median_s, self._seed, episode))


class BatchSupply(Supply):
    """One step off: the next step's groups at once, when those of the last are done."""

    async def admit(self, steps_left: int) -> None:
        known = await self._buffer.group_states(list(self._outstanding))
        states = [state for state in known.values() if state in OUTSTANDING]
        if all(state == "ready" for state in states):
            steps_done = len(states) // self._config.groups_per_step
            await super().admit(min(steps_left, steps_done + 1))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--median-s", type=float, required=True, help="of a command")
    parser.add_argument("--load-seed", type=int, default=0)
    parser.add_argument("--batches", action="store_true", help="one step off")
    arguments, overrides = parser.parse_known_args(argv)
    as_configured = services.sandbox_factory

    def slowed(*given: Any) -> dict[str, Any]:
        settings = {"median_s": arguments.median_s, "seed": arguments.load_seed}
        return as_configured(*given) | {"_target_": "benchmarks.slow_tools.SlowSandboxes"} | settings

    services.sandbox_factory = slowed
    if arguments.batches:
        training.Supply = BatchSupply
    return launch.main(overrides)


if __name__ == "__main__":
    run_main(main)
