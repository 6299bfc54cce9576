"""How many episodes run, and how many groups are sampled ahead of learning: decided from what is seen, within bounds.

    each engine: episodes, waiting requests, KV cache ─┐
    sandboxes:   capacity, held by episodes to judge  ─┴─▶ Slots.decide ─▶ episodes that each actor may run at once
    each step:   the learner's seconds, its waiting,
                 how long its groups took             ───▶ Ahead.observe, groups_to_admit ─▶ groups that may start now

Pure: no clock, no event loop, and a cost of one look for each engine and each step. Nothing of it is kept over a
restart: engines begin empty, and the first looks say all there is to know.

**Slots** go by the rule of TCP, with an ended episode in the place of an acknowledgement. An actor begins with as many
as its KV cache holds whole contexts. Each episode that ends adds one (so the slots double in the time of an episode)
until the engine is first congested, and 1/16 from then on; but only where the slots are in use, nothing waits and the
cache has room. Congested is an engine in which requests have waited for PATIENCE_S without a break. That takes a
quarter of the episodes away, once: the next look at congestion waits until so many have ended. An engine that gets new
weights computes its contexts anew, and starts a new count. All actors together never have more slots than the sandbox
hosts have room for, beside the sandboxes that wait for a judge: so a backlog of judging slows sampling down.

**Groups ahead** are bounded by the staleness (klong_rl.schedule), and within that by the learner's pace: while a group
is made, the learner takes `group_s / step_s` steps' worth (Little's law), and one step's worth lies ready. A step that
had to wait adds half a step's worth to the cushion on top, others let it melt. More than that would only lie there and
age. And no more than two steps' worth of episodes wait for a slot, so that slots that come free while the learner
is busy find some: what waits longer belongs to an older stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec

from klong_rl.config import ActorsConfig, RolloutConfig, RunConfig
from klong_rl.schedule import groups_to_admit

PATIENCE_S = 30.0  # a queue that long is no burst: many engine steps, and a small part of an episode
CUT = 0.75  # of the episodes under way, after congestion
GROWTH = 1 / 16  # slots an ended episode adds, once the engine was congested
KV_ROOM = 0.85  # of the KV cache: beyond it nothing is added, since contexts under way still grow
IN_USE = 0.9  # of the slots: with fewer busy, it isn't the slots that hold episodes back
STARVED = 0.05  # of a step spent waiting
CUSHION_UP, CUSHION_DOWN = 0.5, 7 / 8  # of a step's groups, after a step that waited; of itself, after another
QUEUE_STEPS = 2  # steps' worth of episodes that may wait for a slot
MEMORY = 0.25  # of a step, in the running means


class EngineLook(msgspec.Struct, frozen=True, kw_only=True):
    """One actor and its engine at one moment. `actor` is the name of its life; counts are since that began."""

    actor: str
    episodes: int  # under way
    ended: int  # episodes
    fits: int  # whole contexts that the KV cache holds, sampled at once
    waiting: int  # requests that the engine could not begin, or had to put off
    kv_use: float  # of the KV cache, 0 to 1
    paused_s: float  # for new weights
    sampled: int = 0  # tokens


class StepPace(msgspec.Struct, frozen=True, kw_only=True):
    """One learner step. `group_s`: from admission to the last verdict, of each of its groups for which it is known."""

    busy_s: float
    waited_s: float
    group_s: Sequence[float]


@dataclass
class _Engine:
    slots: float
    episodes: int = 0
    ended: int = 0
    paused_s: float = 0.0
    waiting_since: float | None = None
    never_congested: bool = True
    settling: bool = False  # episodes that were too many have not ended yet


class Slots:
    """Of all rollout actors. `sandboxes`: how many the hosts hold at once; 0: no bound."""

    def __init__(self, actors: ActorsConfig, sandboxes: int = 0) -> None:
        self._least, self._most, self._sandboxes = actors.min_episodes, actors.episodes, sandboxes
        self._engines: dict[str, _Engine] = {}
        self._looks: Sequence[EngineLook] = ()
        self._given: dict[str, int] = {}

    def decide(self, looks: Sequence[EngineLook], to_judge: int, now: float) -> dict[str, int]:
        """Slots by actor, at `now` (seconds of any clock that only grows). `to_judge`: ended, their sandboxes kept.

        An actor that isn't in `looks` is forgotten, and begins anew when it is.
        """
        self._looks = looks
        self._engines = {look.actor: self._look(look, now) for look in looks}
        slots = {actor: int(engine.slots) for actor, engine in self._engines.items()}
        self._given = self._share(slots, self._sandboxes - to_judge) if self._sandboxes else slots
        return self._given

    def metrics(self) -> dict[str, float]:
        """Over all actors; `kv_use` of the fullest engine."""
        return {
            "pacing_slots": sum(self._given.values()),
            "pacing_episodes": sum(look.episodes for look in self._looks),
            "pacing_waiting": sum(look.waiting for look in self._looks),
            "pacing_kv_use": max((look.kv_use for look in self._looks), default=0.0),
        }

    def _look(self, look: EngineLook, now: float) -> _Engine:
        engine = self._engines.get(look.actor) or _Engine(first_slots(self._least, self._most, look.fits))
        ended = look.ended - engine.ended
        if look.waiting == 0 or look.paused_s != engine.paused_s:
            engine.waiting_since = None
        elif engine.waiting_since is None:
            engine.waiting_since = now
        engine.ended, engine.paused_s = look.ended, look.paused_s
        engine.settling = engine.settling and look.episodes > engine.slots
        waited_s = 0.0 if engine.waiting_since is None else now - engine.waiting_since
        if waited_s >= PATIENCE_S and not engine.settling:
            engine.slots = max(self._least, CUT * min(engine.slots, look.episodes))
            engine.never_congested, engine.settling, engine.waiting_since = False, True, None
        elif look.waiting == 0 and look.kv_use < KV_ROOM and look.episodes >= IN_USE * self._given.get(look.actor, 0):
            engine.slots = min(self._most, engine.slots + ended * (1.0 if engine.never_congested else GROWTH))
        return engine

    def _share(self, slots: Mapping[str, int], room: int) -> dict[str, int]:
        """`slots` cut down in proportion to `room`, each keeping the least it may have."""
        total = sum(slots.values())
        if total <= room:
            return dict(slots)
        return {actor: max(self._least, n * max(0, room) // total) for actor, n in slots.items()}


def first_slots(least: int, most: int, fits: int) -> int:
    """With which an actor begins: none of as many whole contexts has to wait.

    >>> first_slots(1, 32, fits=20), first_slots(1, 32, fits=900)
    (20, 32)
    """
    return max(least, min(most, fits))


class Ahead:
    """Groups that are admitted and not yet leased."""

    def __init__(self, rollout: RolloutConfig) -> None:
        self._rollout = rollout
        self._step_s = 0.0
        self._group_s: float | None = None
        self._cushion = 0.0  # groups
        self._admitted = 0

    def observe(self, step: StepPace) -> None:
        """A learner step is done."""
        whole = self._bound()
        if step.waited_s > STARVED * (step.busy_s + step.waited_s):
            self._cushion = min(whole, self._cushion + CUSHION_UP * self._rollout.groups_per_step)
        else:
            self._cushion *= CUSHION_DOWN
        self._step_s = _running_mean(self._step_s or None, step.busy_s)
        if step.group_s:
            self._group_s = _running_mean(self._group_s, fmean(step.group_s))

    def wanted(self) -> int:
        """How many groups ahead the learner's pace asks for; the staleness' bound until a step has shown it."""
        per_step, bound = self._rollout.groups_per_step, self._bound()
        if self._group_s is None or self._step_s <= 0:
            return bound
        return min(bound, math.ceil(per_step * (1 + self._group_s / self._step_s) + self._cushion))

    def groups_to_admit(self, outstanding: int, queued: int, steps_left: int) -> int:
        """How many groups may start: `outstanding` are admitted and not yet leased, `queued` episodes wait for a slot,
        and `steps_left` is the most steps of the stage to come.
        """
        rollout = self._rollout
        self._admitted = outstanding
        within_staleness = groups_to_admit(outstanding, steps_left, rollout.groups_per_step, rollout.max_staleness)
        in_queue = math.ceil(QUEUE_STEPS * rollout.groups_per_step - queued / rollout.group_size)
        return max(0, min(within_staleness, self.wanted() - outstanding, in_queue))

    def metrics(self) -> dict[str, float]:
        """In groups, and seconds of the running means."""
        return {
            "pacing_groups_ahead": self._admitted,
            "pacing_groups_wanted": self.wanted(),
            "pacing_group_s": self._group_s or 0.0,
        }

    def _bound(self) -> int:
        return (1 + self._rollout.max_staleness) * self._rollout.groups_per_step


class Pacing:
    """Both, for one launch."""

    def __init__(self, slots: Slots, ahead: Ahead) -> None:
        self.slots = slots
        self.ahead = ahead

    @classmethod
    def of(cls, config: RunConfig) -> Pacing:
        """Within the bounds of `config`."""
        sandboxes = config.sandbox.per_host * max(1, len(config.sandbox.hosts))
        return cls(Slots(config.actors, sandboxes), Ahead(config.rollout))

    def metrics(self) -> dict[str, float]:
        return self.slots.metrics() | self.ahead.metrics()


def _running_mean(before: float | None, new: float) -> float:
    return new if before is None else before + MEMORY * (new - before)
