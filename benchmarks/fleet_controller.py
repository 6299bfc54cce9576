"""The program's own rules, driven in the virtual time of benchmarks.fleet_world; each call is timed and counted.

    Supply.admit ─▶ Rules.claim ─▶ (world: set up, work, timeout) ─▶ Rules.seal, next_to_judge ─▶ Lane ─▶ Rules.verdict
       ▲ Ahead                                                                                             │
       └── Rules.lease ─▶ (world: the learner's step) ─▶ publish_version, commit, Curriculum.decide ◀── close_group
    Slots.decide, each LOOK_S                                                        Rules.forget

What the program does by asking Redis is done here by asking `klong_rl.buffer.rules`, which says the same.
"""

from __future__ import annotations

import itertools
import random
import time
from bisect import bisect_right
from collections import defaultdict
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.fleet_parts import AtOnce, Family, Timed, at_once
from benchmarks.fleet_world import Engine, Events, World, work_s
from klong_rl.admission import Admission
from klong_rl.buffer import Result
from klong_rl.buffer.rules import Rules
from klong_rl.config import CurriculumConfig, RolloutConfig, StageConfig
from klong_rl.curriculum import Curriculum, StepOutcome
from klong_rl.judging.lane import Lane, Urgency
from klong_rl.lineage import within_reach
from klong_rl.pacing import EngineLook, StepPace
from klong_rl.supply import Supply
from klong_rl.types import Outcome, Verdict, Window

LOOK_S = 60.0  # at the engines
LEARNER_LOOK_S = 5.0  # while it waits
HIDDEN_MS = 3_600_000
HOURS = (2, 4, 6)
TOKENS_T, TARGETS_T, LOGPROBS_T = np.zeros(2, np.int32), np.ones(2, np.uint8), np.zeros(2, np.float32)


class Fleet:
    """One run. `slots` and `ahead` are klong_rl.pacing's or their rivals."""

    def __init__(self, world: World, slots: Any, ahead: Any, rollout: RolloutConfig) -> None:
        self.world, self.slots, self.rollout = world, slots, rollout
        self.events, self.rules, self.timed = Events(), Rules(), Timed()
        self.lane = Lane(world.requests_per_s, 4 * world.judges)
        stages = [StageConfig(timeout_s=3600.0 * hours, max_turns=1, steps=world.steps) for hours in HOURS]
        self.curriculum = Curriculum(CurriculumConfig(stages=stages))
        buffer = AtOnce(self.rules, self._age_s)
        admission = Admission(buffer, lambda text: None)
        self.supply = Supply(rollout, buffer, Family(), admission, ahead, lambda: self.events.now)
        self.ahead = ahead
        self.engines = [Engine(f"e{i}", world, self.events, self._done) for i in range(world.engines)]
        self._draw = random.Random(world.seed)
        self._requested = itertools.count()
        self._free: list[Engine] = []  # engines that may have a slot free
        self._at: dict[str, Engine] = {}
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._worked: dict[str, float] = {}
        self._judging, self._leaves, self._opens_at = 0, defaultdict(int), float("inf")
        self.lineage, self._published, self.step = {1: 0}, [0.0], 0
        self._waits_since: float | None = 0.0
        self.samples: dict[str, list[float]] = defaultdict(list)
        self.trained_windows, self.busy_s = 0, 0.0

    def run(self) -> None:
        self.timed("publish", self.rules.publish_version, 0, "publish:0")
        self.supply.begin(1, self.curriculum.settings)
        self._look()
        self._learner_looks()
        self.events.run(lambda: self.curriculum.finished)

    # Rollout actors

    def _look(self) -> None:
        looks = [self._engine_look(engine) for engine in self.engines]
        sealed = self.rules.states["sealed"]
        given = self.timed("look", self.slots.decide, looks, sealed, self.events.now, n=len(looks))
        for engine in self.engines:
            engine.slots = given[engine.name]
        self._free = list(self.engines)
        self._draw.shuffle(self._free)
        self._sample()
        self._claim()
        self.events.at(self.events.now + LOOK_S, self._look)

    def _engine_look(self, engine: Engine) -> EngineLook:
        _, waiting, kv_use = engine.load
        return EngineLook(
            actor=engine.name,
            episodes=engine.held,
            ended=engine.ended,
            fits=self.world.fits,
            waiting=waiting,
            kv_use=kv_use,
            paused_s=0.0,
        )

    def _sample(self) -> None:
        """The state of things, once a minute."""
        states, counts = self.rules.states, self.rules.window_counts
        self.samples["running"].append(states["running"] / self.world.sandboxes)
        self.samples["queued"].append(states["queued"])
        self.samples["to_judge"].append(states["sealed"])
        self.samples["ready_windows"].append(counts["ready"])
        self.samples["waiting"].append(fmean(engine.load[1] for engine in self.engines))

    def _claim(self) -> None:
        """As long as there is a slot, a sandbox and an episode."""
        states = self.rules.states
        while self._free and states["queued"] and states["running"] + states["sealed"] < self.world.sandboxes:
            engine = self._free[-1]
            if engine.held >= engine.slots:
                self._free.pop()
                continue
            claim = self.timed("claim", self.rules.claim, engine.name, f"claim:{next(self._requested)}")
            engine.held += 1
            self._at[claim.spec.id] = engine
            self.events.at(self.events.now + self.world.set_up_s, self._begin, claim.spec.id, claim.spec.timeout_s)

    def _begin(self, episode: str, timeout_s: float) -> None:
        self._began[episode] = self.events.now
        self._at[episode].begin(episode, work_s(self.world, self._draw))
        self.events.at(self.events.now + timeout_s, self._cut, episode)

    def _cut(self, episode: str) -> None:
        if episode in self._at:
            self._over(episode, "timeout")

    def _done(self, episode: str) -> None:
        self._over(episode, "submitted")

    def _age_s(self, episode: str) -> float:
        if episode not in self._began:
            return 0.0
        return self._ended.get(episode, self.events.now) - self._began[episode]

    def _over(self, episode: str, kind: str) -> None:
        engine = self._at.pop(episode)
        self._worked[episode] = engine.end(episode)
        self._ended[episode] = self.events.now
        self.timed("seal", self.rules.seal, episode, 1, Outcome(kind=kind))
        self._free.append(engine)
        self._judge()
        self._claim()

    # Judges

    def _judge(self) -> None:
        now_ms = int(1000 * self.events.now)
        while self._judging < self.world.judges and self.rules.states["sealed"] > self._judging:
            request = f"judge:{next(self._requested)}"
            job = self.timed("judge", self.rules.next_to_judge, "judge", HIDDEN_MS, request, now_ms)
            group = self.rules.groups[self.rules.episodes[job.spec.id].group]
            n_open = sum(self.rules.episodes[i].state in ("queued", "running") for i in group.members)
            self.timed("rank", self.lane.rank, job.spec.group, Urgency(True, n_open > 0, group.rank[1]))
            self._judging += 1
            self._leaves[job.spec.id] = self.world.leaves
            for leaf in range(self.world.leaves):
                self.timed("request", self.lane.push, (job.spec.id, leaf), job.spec.group)
        self._requests()

    def _requests(self) -> None:
        now = self.events.now
        while (ticket := self.timed("request", self.lane.take, now)) is not None:
            self.events.at(now + self.world.judge_takes_s, self._answered, ticket[0])
        opens_at = self.timed("request", self.lane.opens_at, now)
        if opens_at is not None and not now < self._opens_at <= opens_at:
            self._opens_at = opens_at
            self.events.at(opens_at, self._requests)

    def _answered(self, episode: str) -> None:
        self.lane.release()
        self._leaves[episode] -= 1
        if self._leaves[episode] == 0:
            del self._leaves[episode]
            self._judging -= 1
            self.timed("verdict", self.rules.verdict, episode, 1, Verdict(score=self._draw.random()))
            self._close()
            self._judge()
            self._claim()
        else:
            self._requests()

    def _close(self) -> None:
        while (name := self.timed("close", self.rules.next_group_to_close, n=0)) is not None:
            windows = [window for episode in self.rules.groups[name].members for window in self._windows(episode)]
            self.timed("close", self.rules.close_group, name, windows)
            self.lane.forget(name)

    def _windows(self, episode: str) -> list[Window]:
        """One for each `window_s` of work, sampled by the versions published by its beginning and its end."""
        began, ended = self._began[episode], self._ended[episode]
        n = max(1, round(self._worked[episode] / self.world.window_s))
        held, windows = self.rules.episodes[episode], []
        for i in range(n):
            since, until = (began + (ended - began) * at / n for at in (i, i + 1))
            first, last = bisect_right(self._published, since), bisect_right(self._published, until)
            windows.append(
                Window(
                    id=f"{episode}/{len(windows)}", episode=episode, group=held.group, stage=held.spec.stage,
                    tokens_T=TOKENS_T, targets_T=TARGETS_T, logprobs_T=LOGPROBS_T, versions=((first, 1), (last, 1)),
                )
            )  # fmt: skip
        return windows

    # The learner

    def _learner_looks(self) -> None:
        admitted = self.rules.order
        began = time.thread_time_ns()
        at_once(self.supply.admit(self.curriculum.steps_left))
        self.timed.seconds["admit"] += (time.thread_time_ns() - began) / 1e9
        self.timed.calls["admit"] += 1 + self.rules.order - admitted
        self._close()
        self._claim()
        oldest, dead = within_reach(self.lineage, self.step, self.rollout.max_staleness)
        n = self.rollout.groups_per_step
        refs = self.timed("lease", self.rules.lease, self.step + 1, n, oldest, dead, n=n)
        if not refs:
            self.events.at(self.events.now + LEARNER_LOOK_S, self._learner_looks)
            return
        waited_s = self.events.now - self._waits_since
        busy_s = self.world.learner_s * self._draw.uniform(0.9, 1.1)
        newest = max(self.lineage)
        staleness = [newest - ref.oldest_version for ref in refs]
        self.samples["staleness_mean"].append(fmean(staleness))
        self.samples["staleness_max"].append(max(staleness))
        self.trained_windows += len(refs)
        self.busy_s += busy_s
        groups = dict.fromkeys(ref.group for ref in refs)
        self.events.at(self.events.now + busy_s, self._trained, list(groups), busy_s, waited_s)

    def _trained(self, groups: list[str], busy_s: float, waited_s: float) -> None:
        rules, self.step = self.rules, self.step + 1
        results = {group: [self._result(i) for i in rules.groups[group].members] for group in groups}
        group_s = self.supply.leased(results)
        version = self.timed("publish", rules.publish_version, 0, f"publish:{self.step}")
        self.lineage[version] = self.step
        self._published.append(self.events.now)
        self.ahead.observe(StepPace(busy_s=busy_s, waited_s=waited_s, group_s=group_s))
        stage = self.curriculum.stage
        scored = [
            (r.outcome, r.verdict.score) for g in groups for r in results[g] if rules.groups[g].refs[0].stage == stage
        ]
        self.curriculum.observe(StepOutcome.of(scored) if scored else None)
        self.timed("commit", rules.commit, self.step, n=len(groups))
        for group in rules.consumed():
            for episode in rules.groups[group].members:
                del self._began[episode], self._ended[episode], self._worked[episode]
            self.timed("forget", rules.forget, group)
        if (move := self.timed("curriculum", self.curriculum.decide)) is not None:
            self.curriculum.enter(move)
            self.supply.begin(self.curriculum.stage, self.curriculum.settings)
        self._waits_since = self.events.now
        if not self.curriculum.finished:
            self._learner_looks()

    def _result(self, episode: str) -> Result:
        e = self.rules.episodes[episode]
        return Result(e.outcome, e.verdict, 1, self._ended[episode])
