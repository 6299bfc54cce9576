"""The two pools of actors, and how one more is made: each by a name that no other of this launch has had."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from klong_rl.config import RunConfig
from klong_rl.gpus import release, reserve


@dataclass
class Member:
    """One actor through its lives."""

    name: str
    actor: Any
    has_engine: bool
    is_extra: bool = False  # it came by scaling: the run can do without it
    leaving: bool = False  # it is let go of: nothing more is asked of it
    life: int = 0
    at_work_since: float | None = None  # monotonic clock
    was_at_work: bool = False  # in any life
    fault: Exception | None = None  # why this life was ended from here
    place: Any = None  # its own placement group, where it has one

    @property
    def owner(self) -> str:
        """The name of this life."""
        return f"{self.name}.{self.life}"

    @property
    def pool(self) -> str:
        return "rollout" if self.has_engine else "judge"


class Pools:
    """`rollout_class` and `judge_class` are plain classes (actors.rollout, actors.judge)."""

    def __init__(self, config: RunConfig, settings: Any, rollout_class: type, judge_class: type) -> None:
        import ray

        self._ray = ray
        self._config, self._settings = config, settings
        self._rollouts, self._judges = ray.remote(rollout_class), ray.remote(judge_class)
        self._numbers = {"rollout": itertools.count(), "judge": itertools.count()}

    def make(self, pool: str, is_extra: bool = False) -> Member:
        """An actor whose process Ray makes, here or wherever there is room for it, and makes again when it ends."""
        number = next(self._numbers[pool])
        name = f"{pool}-{number}"
        if pool == "judge":
            judges = self._judges.options(num_cpus=self._config.judge.num_cpus, max_restarts=-1)
            return Member(name, judges.remote(self._settings), has_engine=False, is_extra=is_extra)
        engine = self._config.actors
        place = reserve(engine)
        rollouts = self._rollouts.options(
            num_cpus=engine.num_cpus, num_gpus=engine.num_gpus, max_restarts=-1, scheduling_strategy=place
        )
        return Member(name, rollouts.remote(self._settings, number), has_engine=True, is_extra=is_extra, place=place)

    def remove(self, member: Member) -> None:
        """End its process for good, and give back what was kept for it."""
        self._ray.kill(member.actor)
        release(member.place)
