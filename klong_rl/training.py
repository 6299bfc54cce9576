"""The main loop: progressive RL over the stages of a curriculum.

    for each stage:                                       its timeout, turns and difficulty
        evaluate on held-out tasks
        for each step:
            admit groups of episodes                      the actors sample, the judges score, meanwhile
            lease the groups closed first                 waits for them; ended by `rollout.step_timeout_s`
            train on their windows                        the learner
            publish the weights                           engines pause and go on; the version grows
            checkpoint, then commit what it was trained on; what is committed is archived, beside the next steps
        evaluate again

The loop owns no state of its own: episodes, windows and versions are in the buffer, the rest is in the checkpoint.
Actors that die are replaced beside it (klong_rl.fleet); a learner that dies ends it, and another begins at the newest
checkpoint (klong_rl.lives).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from klong_rl.admission import Admission
from klong_rl.agreement import Gap, measure_gap
from klong_rl.blocking import in_thread
from klong_rl.buffer import Buffer, Result, WindowRef
from klong_rl.buffer.archive import Archiver
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.config import RunConfig, StageConfig
from klong_rl.fleet import Fleet
from klong_rl.ledger import Ledger, TrainedStep
from klong_rl.monitor.metrics import StepMetrics
from klong_rl.results import RunLog, episode_numbers, mean, rewards_of
from klong_rl.schedule import evaluation, evaluation_prefix, groups_to_admit, training_group
from klong_rl.tasks.base import TaskFamily

T = TypeVar("T")

LOOK_S = 0.1  # between two looks at the buffer while waiting
OUTSTANDING = ("open", "complete", "ready")  # states of a group that is admitted and not yet leased
FSYNC_S = 2.0  # Redis syncs its file each second, or up to a second later while the disk is busy


class Stuck(Exception):
    """What was waited for didn't come by its deadline."""


class LeaseLost(Exception):
    """Redis came back without a lease whose windows are trained already: the weights must go back to before it."""


class Training:
    """One life of a learner (a learners.group.LearnerGroup), from `state` on. `began`: when the run would have begun,
    had it never been interrupted, on the monotonic clock.
    """

    def __init__(
        self,
        config: RunConfig,
        state: RunState,
        buffer: Buffer,
        fleet: Fleet,
        learner: Any,
        family: TaskFamily,
        checkpoints: Checkpoints,
        archiver: Archiver,
        ledger: Ledger,
        log: RunLog,
        began: float,
    ) -> None:
        self.config = config
        self.state = state
        self.buffer = buffer
        self.fleet = fleet
        self.learner = learner
        self.family = family
        self.checkpoints = checkpoints
        self.archiver = archiver
        self.ledger = ledger
        self.log = log
        self._groups: list[str] = []  # of this stage: admitted, perhaps leased since
        self._next_index = 0
        self._admission = Admission(buffer, log.warn)
        self._began = began
        self._leased_at = 0.0

    async def run(self) -> None:
        """Train through the stages that are left."""
        await self._evaluate([("cold", number) for number in self._numbers()])
        while not self.state.finished:
            number = self.state.stage
            await self._evaluate([("before", number)])
            self._groups, self._next_index = [], 0
            while self.state.stage_step < self._stage(number).steps:
                await self._step(number, self._stage(number))
            last = number == self._numbers()[-1]
            await self._evaluate([("after", number)] if last else [("after", number), ("before", number + 1)])
            self.state.stage, self.state.stage_step = (number, self.state.stage_step) if last else (number + 1, 0)
            self.state.finished = last
            self._update_checkpoint()

    def _numbers(self) -> list[int]:
        return list(range(1, len(self.config.curriculum.stages) + 1))

    def _stage(self, number: int) -> StageConfig:
        return self.config.curriculum.stages[number - 1]

    async def _step(self, number: int, stage: StageConfig) -> None:
        began = time.monotonic()
        step, version = self.state.step + 1, self.state.version
        self.log.phase("sampling", number)
        refs = await self._lease(step, number, stage)
        leased = time.monotonic()
        results = await self._results(refs)
        self.log.phase("training", number)
        staleness = max(self.state.staleness(version) for ref in refs for version in ref.versions)
        learned = await self._learn(self.learner.train_step, step, version, refs)
        self.ledger.write(TrainedStep.of(step, version, staleness, refs))
        trained = time.monotonic()
        await self._publish(step)
        published = time.monotonic()
        gap = await measure_gap(self.buffer, self.fleet, self.learner, refs) + Gap.of_step(learned)
        counts = await self.buffer.counts()
        self._count(step, number, rewards_of(results))
        self.log.step(
            StepMetrics(
                step=step,
                stage=number,
                timeout_s=stage.timeout_s,
                policy_version=version,
                staleness_max=staleness,
                windows=len(refs),
                action_tokens=int(learned["action_tokens"]),
                tokens_per_s=sum(ref.n_tokens for ref in refs) / (published - began),
                publish_s=published - trained,
                learner_s=trained - leased,
                wait_s=leased - began,
                logprob_gap_mean=gap.mean,
                logprob_gap_max=gap.max,
                loss=learned["loss"],
                grad_norm=learned["grad_norm"],
                clip_fraction=learned.get("clip_fraction", 0.0),
                kl=learned.get("kl_sampler_k3", 0.0),
                **episode_numbers(results),
                extras={
                    # Whatever else the learner reports, an objective's own numbers among it.
                    **{name: value for name, value in learned.items() if name not in StepMetrics.__struct_fields__},
                    "logprob_gap_tokens": gap.tokens,
                    "windows_stale": counts.windows.get("stale", 0),
                    "episodes_dropped": sum(counts.drops.values()),
                },
            )
        )
        if step % self.config.learner.checkpoint_every == 0 or self.state.stage_step == stage.steps:
            await self._checkpoint(number)

    async def _lease(self, step: int, number: int, stage: StageConfig) -> list[WindowRef]:
        """The windows of the next step, admitting episodes until there are enough."""
        rollout = self.config.rollout
        until = time.monotonic() + rollout.step_timeout_s
        while True:
            await self._admit(number, stage)
            oldest, dead = self.state.within_reach(rollout.max_staleness)
            refs = await self.buffer.lease(step, rollout.groups_per_step, oldest, dead)
            if refs:
                self._leased_at = time.monotonic()
                self._check_untrained(step, refs)
                return refs
            self.fleet.check()
            if time.monotonic() > until:
                counts = await self.buffer.counts()
                raise Stuck(
                    f"no {rollout.groups_per_step} finished groups for step {step} within "
                    f"rollout.step_timeout_s={rollout.step_timeout_s:g}; episodes: {counts.states}, "
                    f"dropped: {counts.drops}"
                )
            await asyncio.sleep(LOOK_S)

    def _check_untrained(self, step: int, refs: Sequence[WindowRef]) -> None:
        """A Redis that died may come back without its last second. Leases older than that are in the checkpoint."""
        if trained := self.ledger.trained([ref.group for ref in refs]):
            raise LeaseLost(f"Redis lost the lease of step {max(trained.values())}, and gave its groups to step {step}")

    async def _admit(self, number: int, stage: StageConfig) -> None:
        rollout = self.config.rollout
        states = await self.buffer.group_states(self._groups)
        self._groups = [group for group in self._groups if states.get(group) in OUTSTANDING]
        steps_left = stage.steps - self.state.stage_step
        while groups_to_admit(len(self._groups), steps_left, rollout.groups_per_step, rollout.max_staleness) > 0:
            specs = training_group(self.family, number, stage, self._next_index, rollout.group_size)
            if not await self._admission.admit(specs):
                return  # this group comes again: one that lacks a member would never be complete
            self._next_index += 1
            # A group of an earlier launch may be used up already: the buffer knows.
            if (await self.buffer.group_states([specs[0].group])).get(specs[0].group) in OUTSTANDING:
                self._groups.append(specs[0].group)

    async def _publish(self, step: int) -> None:
        """The learner's weights, which hold `step` updates, become the next policy version, in every engine."""
        floor = max([self.fleet.version, *self.state.lineage])  # whatever Redis may have lost
        version = await self.buffer.publish_version(floor=floor)
        path = await self._learn(self.learner.publish, version)
        await self.fleet.publish(str(path), version)
        self.state.lineage[version] = step

    async def publish_restored(self) -> None:
        """The weights of the checkpoint, published anew: what the engines have may be of weights that are gone.

        The checkpoint notes the version: should it be gone back to again, that one was not a step away from it.
        """
        await self._publish(self.state.step)
        self._update_checkpoint()

    async def _learn(self, call: Callable[..., T], *args: Any) -> T:
        """A call of the learner group, which blocks; the group is ended if we are cancelled meanwhile."""
        return await in_thread(call, *args, stop=self.learner.shutdown)

    async def _results(self, refs: list[WindowRef]) -> list[Result]:
        groups = dict.fromkeys(ref.group for ref in refs)
        return [result for group in groups for result in await self.buffer.results(group)]

    def _count(self, step: int, number: int, rewards: list[float]) -> None:
        self.state.step = step
        self.state.stage, self.state.stage_step = number, self.state.stage_step + 1
        self.state.wall_s = time.monotonic() - self._began
        self.state.rewards.setdefault(str(number), []).append(mean(rewards))
        self.state.episodes[str(number)] = self.state.episodes.get(str(number), 0) + len(rewards)

    async def _checkpoint(self, number: int) -> None:
        self.log.phase("checkpoint", number)

        def write(folder: Path) -> None:
            self.learner.save(folder / "megatron")
            self.learner.save_hf(folder / "hf")
            self.ledger.sync()
            # After a loss of power, a lease that this checkpoint holds must not be unknown to Redis.
            if self.config.buffer.fsync != "always":
                time.sleep(max(0.0, self._leased_at + FSYNC_S - time.monotonic()))

        await self._learn(self.checkpoints.save, self.state, write)
        await self.buffer.commit(self.state.step)
        self.archiver.start()

    def _update_checkpoint(self) -> None:
        self.state.wall_s = time.monotonic() - self._began
        if self.checkpoints.newest() is not None:
            self.checkpoints.update_state(self.state)

    async def _evaluate(self, wanted: list[tuple[str, int]]) -> None:
        """Mean reward on held-out tasks for each (tag, stage) that has none yet; all at once, ahead of training."""
        if self.state.step == 0:  # before any training, the weights are the cold start's
            cold = {key.removeprefix("cold"): value for key, value in self.state.evals.items()}
            self.state.evals |= {f"before{key}": cold[key] for tag, n in wanted if (key := f"-s{n}") in cold}
        wanted = [(tag, number) for tag, number in wanted if f"{tag}-s{number}" not in self.state.evals]
        episodes = self.config.evaluation.episodes
        until = time.monotonic() + self.config.rollout.step_timeout_s
        for tag, number in wanted:
            # Between stages the weights of a step are those of its checkpoint, whichever life comes back to it.
            specs = evaluation(self.family, self._tag(tag), number, self._stage(number), episodes)
            while not await self._admission.admit(specs):
                self._wait_on(until, f"evaluation {tag} of stage {number} was not admitted, the buffer being full,")
                await asyncio.sleep(LOOK_S)
        for tag, number in wanted:
            self.log.phase(f"evaluating on held-out tasks: {tag} stage {number}", self.state.stage)
            prefix = evaluation_prefix(self._tag(tag), number)
            scores = await self._scores(prefix, episodes, until)
            if not scores:
                raise Stuck(f"none of the {episodes} episodes of {prefix} could be scored: {await self._drops()}")
            if len(scores) < episodes:
                self.log.warn(f"{prefix}: {len(scores)} of {episodes} episodes scored: {await self._drops()}")
            self.state.evals[f"{tag}-s{number}"] = mean(scores)
        if wanted:
            self._update_checkpoint()

    async def _drops(self) -> str:
        return f"episodes dropped so far: {(await self.buffer.counts()).drops}"

    def _tag(self, tag: str) -> str:
        return f"{tag}-step{self.state.step}"

    async def _scores(self, prefix: str, episodes: int, until: float) -> list[float]:
        """Scores of all evaluation groups under `prefix`, once all are closed; dropped episodes have none."""
        groups = [f"{prefix}{index}" for index in range(episodes)]
        while True:
            states = await self.buffer.group_states(groups)
            if not any(state in OUTSTANDING for state in states.values()):
                return list((await self.buffer.scores(prefix)).values())
            self._wait_on(until, f"evaluation {prefix} did not end")
            await asyncio.sleep(LOOK_S)

    def _wait_on(self, until: float, what: str) -> None:
        """Raise what ended an actor; Stuck past `until`."""
        self.fleet.check()
        if time.monotonic() > until:
            raise Stuck(f"{what} within rollout.step_timeout_s={self.config.rollout.step_timeout_s:g}")
