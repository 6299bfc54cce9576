"""What stands around the rules in benchmarks.fleet_controller: a timer of their cost, a buffer, rivals of pacing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from benchmarks.fleet_world import World
from klong_rl.buffer.records import Age
from klong_rl.buffer.rules import Rules
from klong_rl.config import ActorsConfig, RolloutConfig
from klong_rl.pacing import Ahead, EngineLook, Slots, StepPace
from klong_rl.schedule import groups_to_admit
from klong_rl.types import Task


class Family:
    """Tasks with nothing in them."""

    def train(self, difficulty: int, index: int) -> Task:
        return Task(id=f"t{index}", family="simulated", instruction="", image="")


class StalenessAlone:
    """A rival of `Ahead`: the staleness bounds what is sampled ahead, and nothing else does."""

    def __init__(self, rollout: RolloutConfig) -> None:
        self._rollout = rollout

    def observe(self, step: StepPace) -> None:
        pass

    def groups_to_admit(self, outstanding: int, queued: int, steps_left: int) -> int:
        return groups_to_admit(outstanding, steps_left, self._rollout.groups_per_step, self._rollout.max_staleness)


class FixedSlots:
    """A rival of `Slots`: a number for each actor, whatever is seen."""

    def __init__(self, slots: int) -> None:
        self._slots = slots

    def decide(self, looks: Sequence[EngineLook], to_judge: int, now: float) -> dict[str, int]:
        return {look.actor: self._slots for look in looks}


class Timed:
    """CPU seconds and calls, by what was asked."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __call__(self, what: str, call: Callable[..., Any], *arguments: Any, n: int = 1) -> Any:
        """`n`: of how many events it is the answer."""
        began = time.thread_time_ns()
        answer = call(*arguments)
        self.seconds[what] += (time.thread_time_ns() - began) / 1e9
        self.calls[what] += n
        return answer

    @property
    def per_event_us(self) -> float:
        return 1e6 * self.seconds.total() / self.calls.total()


class AtOnce:
    """The buffer's methods that Supply awaits, answered by the rules. `age_s`: of an episode, 0 before it begins."""

    def __init__(self, rules: Rules, age_s: Callable[[str], float]) -> None:
        self._rules = rules
        self._age_s = age_s

    async def admit(self, spec: Any) -> bool:
        return self._rules.admit(spec)

    async def n_queued(self) -> int:
        return self._rules.states["queued"]

    async def group_states(self, groups: Sequence[str]) -> dict[str, str]:
        return {name: self._rules.groups[name].state for name in groups if name in self._rules.groups}

    async def ages(self, group: str) -> list[Age]:
        return [Age(i, self._rules.episodes[i].state, self._age_s(i)) for i in self._rules.groups[group].members]

    async def part_group(self, group: str, rest: str, least: int) -> bool:
        return self._rules.part_group(group, rest, least)


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that waits for nothing returns."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits for something, and here is no event loop")


def pacing(world: World, rollout: RolloutConfig) -> tuple[Slots, Ahead]:
    """Ours: bounds, and no number."""
    return Slots(ActorsConfig(min_episodes=1, episodes=64), world.sandboxes), Ahead(rollout)
