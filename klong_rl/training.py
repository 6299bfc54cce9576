"""The main loop: progressive RL over the stages of a curriculum.

    for each stage:                                       its timeout, turns and difficulty
        evaluate on held-out tasks
        for each step:
            admit groups of episodes                      the actors sample, the judges score, meanwhile
            lease the groups closed first                 waits for them; ended by `rollout.step_timeout_s`
            train on their windows                        the learner
            publish the weights                           engines pause and go on; the version grows
            every few steps, begin a checkpoint           written beside the next steps
            once it is durable, commit what it holds      what is committed is archived, beside the next steps too
        finish the checkpoint of the last step
        evaluate again

The loop owns no state of its own: episodes, windows and versions are in the buffer, the rest is in the checkpoint.
Actors that die are replaced beside it (klong_rl.fleet); a learner that dies ends it, and another begins at the newest
checkpoint (klong_rl.lives).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from klong_rl.admission import Admission
from klong_rl.agreement import Gap, measure_gap
from klong_rl.blocking import in_thread
from klong_rl.buffer import Buffer, Result, WindowRef
from klong_rl.buffer.archive import Archiver
from klong_rl.checkpoints import Checkpoints, RunState, Saver
from klong_rl.config import RunConfig
from klong_rl.curriculum import Curriculum, Move, StepOutcome
from klong_rl.errors import LearnerFailure, LeaseLost, Stuck
from klong_rl.fleet import Fleet
from klong_rl.held_out import LOOK_S, HeldOut
from klong_rl.ledger import Ledger, TrainedStep
from klong_rl.monitor.metrics import StepMetrics
from klong_rl.pacing import Pacing, StepPace
from klong_rl.results import RunLog, episode_numbers, mean, sampled_numbers, step_extras
from klong_rl.schedule import stage_of
from klong_rl.steering.controls import Controls
from klong_rl.supply import Supply
from klong_rl.tasks.base import TaskFamily

T = TypeVar("T")

KEEP_S = 60.0  # for the checkpoint under way, when the run is told to stop
FSYNC_S = 2.0  # Redis syncs its file each second, or up to a second later while the disk is busy


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
        pacing: Pacing,
        began: float,
        controls: Controls,
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
        self.curriculum = Curriculum(config.curriculum, state.curriculum)
        admission = Admission(buffer, log.warn)
        self._supply = Supply(config.rollout, buffer, family, admission, pacing.ahead)
        self._pacing = pacing
        self._controls = controls
        self._held_out = HeldOut(
            config, state, buffer, fleet, family, admission, log, self._update_checkpoint, controls.clock
        )
        self._began = began
        self._leased_at = 0.0
        self._saver = Saver(checkpoints, learner)
        self._finish_from = 0.0  # when the checkpoint under way may be finished, on the monotonic clock

    async def run(self) -> None:
        """Train through the stages that are left."""
        self._controls.stands(self.curriculum.stage, self.state.step)
        stages = range(1, len(self.config.curriculum.stages) + 1)
        await self._held_out.evaluate([("cold", number) for number in stages])
        await self._supply.find()
        while not self.curriculum.finished:
            stage = self.curriculum.stage
            await self._held_out.evaluate([("before", stage)])
            self._supply.begin(stage, self.curriculum.settings)
            while (move := self.curriculum.decide()) is None:
                await self._step()
            await self._held_out.evaluate([("after", stage)] + ([("before", move.to)] if move.to else []))
            await self._enter(move)

    async def _enter(self, move: Move) -> None:
        self.curriculum.enter(move)
        self._update_checkpoint()
        self._controls.entered(move)
        if not move.to:
            return
        self.log.say(f"stage {move.origin} → {move.to}: {move.why}")
        if move.to > move.origin and self.config.curriculum.promotion.running == "extend":
            await self._supply.extend(self.curriculum.settings)

    async def _step(self) -> None:
        began, number = time.monotonic(), self.curriculum.stage
        step, version = self.state.step + 1, self.state.version
        self.log.phase("sampling", number)
        refs = await self._lease(step)
        leased = time.monotonic()
        results = {group: await self.buffer.results(group) for group in dict.fromkeys(ref.group for ref in refs)}
        group_s = self._supply.leased(results)
        finished = [result for group in results.values() for result in group]
        of_stage = [result for group in results if stage_of(group) == number for result in results[group]]
        self.log.phase("training", number)
        staleness = max(self.state.staleness(version) for ref in refs for version in ref.versions)
        learned = await self._learn(self.learner.train_step, step, version, refs)
        self.ledger.write(TrainedStep.of(step, version, staleness, refs))
        trained = time.monotonic()
        publishing = await self._publish(step)
        published = time.monotonic()
        gap = await measure_gap(self.buffer, self.fleet, self.learner, refs) + Gap.of_step(learned)
        counts = await self.buffer.counts()
        self._count(step, of_stage)
        self._pacing.ahead.observe(StepPace(busy_s=published - leased, waited_s=leased - began, group_s=group_s))
        self.log.step(
            StepMetrics(
                step=step,
                stage=number,
                timeout_s=self.curriculum.settings.timeout_s,
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
                **episode_numbers(finished),
                extras=step_extras(learned, publishing, gap, counts)
                | self.curriculum.metrics()
                | self._pacing.metrics()
                | self._supply.metrics()
                | sampled_numbers(finished),
            )
        )
        await self._end_step(step, number)

    async def _end_step(self, step: int, number: int) -> None:
        """Hear what the operator wants, and begin the checkpoint that is due."""
        self._controls.stands(number, step)
        if self._controls.leave == number:
            self.curriculum.ask("asked for by the operator")
        ends = self.curriculum.decide() is not None
        if ends or step % self.config.learner.checkpoint_every == 0 or self._controls.wants_checkpoint:
            await self._begin_checkpoint(number)
        await self._finish_checkpoint(wait=ends or not self.config.learner.async_checkpoints)

    async def _lease(self, step: int) -> list[WindowRef]:
        """The windows of the next step, admitting episodes until there are enough."""
        rollout, controls = self.config.rollout, self._controls
        until = controls.clock() + rollout.step_timeout_s
        while True:
            await self._between_steps()
            await self._supply.admit(self.curriculum.steps_left)
            oldest, dead = self.state.within_reach(rollout.max_staleness)
            refs = await self.buffer.lease(step, rollout.groups_per_step, oldest, dead)
            if refs:
                self._leased_at = time.monotonic()
                controls.begins()
                self._check_untrained(step, refs)
                return refs
            self.fleet.check()
            await self._finish_checkpoint(wait=False)
            if controls.clock() > until:
                counts = await self.buffer.counts()
                raise Stuck(
                    f"no {rollout.groups_per_step} finished groups for step {step} within "
                    f"rollout.step_timeout_s={rollout.step_timeout_s:g}; episodes: {counts.states}, "
                    f"dropped: {counts.drops}"
                )
            await asyncio.sleep(LOOK_S)

    async def _between_steps(self) -> None:
        """Where nothing of a step is under way: keep what the operator wants kept, and stay while the run is held."""
        while True:
            if self._controls.wants_checkpoint and not self._saver.under_way:
                await self._begin_checkpoint(self.curriculum.stage)
            if not self._controls.held:
                return
            self.log.phase("paused" if self._controls.paused else "draining", self.curriculum.stage)
            self.fleet.check()
            await self._finish_checkpoint(wait=False)
            await asyncio.sleep(LOOK_S)

    def _check_untrained(self, step: int, refs: Sequence[WindowRef]) -> None:
        """A Redis that died may come back without its last second. Leases older than that are in the checkpoint."""
        if trained := self.ledger.trained([ref.group for ref in refs]):
            raise LeaseLost(f"Redis lost the lease of step {max(trained.values())}, and gave its groups to step {step}")

    async def _publish(self, step: int) -> dict[str, float]:
        """The learner's weights, which hold `step` updates, become the next policy version, in every engine.

        Returns seconds: export_s of the learner, and those of the slowest engine (actors.engine.Engine.publish).
        """
        floor = max([self.fleet.version, *self.state.lineage])  # whatever Redis may have lost
        version = await self.buffer.publish_version(floor=floor)
        began = time.monotonic()
        weights = await self._learn(self.learner.publish, version)
        exported = time.monotonic()
        taken = await self.fleet.publish(weights, version)
        self.state.lineage[version] = step
        return {"export_s": exported - began, **taken}

    async def publish_restored(self) -> None:
        """The weights of the checkpoint, published anew: what the engines have may be of weights that are gone.

        The checkpoint notes the version: should it be gone back to again, that one was not a step away from it.
        """
        await self._publish(self.state.step)
        self._update_checkpoint()

    async def _learn(self, call: Callable[..., T], *args: Any) -> T:
        """A call of the learner group, which blocks; the group is ended if we are cancelled meanwhile."""
        return await in_thread(call, *args, stop=self.learner.shutdown)

    def _count(self, step: int, results: Sequence[Result]) -> None:
        """`results`: of the current stage's episodes."""
        number = str(self.curriculum.stage)
        scored = [(result.outcome, result.verdict.score) for result in results if result.verdict]
        self.state.step = step
        self.curriculum.observe(StepOutcome.of(scored) if scored else None)
        if scored:
            self.state.rewards.setdefault(number, []).append(mean([score for _, score in scored]))
        self.state.episodes[number] = self.state.episodes.get(number, 0) + len(scored)
        self.state.wall_s = time.monotonic() - self._began

    async def _begin_checkpoint(self, number: int) -> None:
        """Of the run as it stands now; it is written while training goes on."""
        self.log.phase("checkpoint", number)
        await self._finish_checkpoint(wait=True)
        self.ledger.sync()
        await self._learn(self._saver.begin, self.state)
        # After a loss of power, a lease that this checkpoint holds must not be unknown to Redis.
        self._finish_from = self._leased_at + (FSYNC_S if self.config.buffer.fsync != "always" else 0.0)

    async def _finish_checkpoint(self, wait: bool) -> None:
        """Commit what the checkpoint under way holds, if there is one and it is durable; `wait` until it is."""
        left = self._finish_from - time.monotonic()
        if not self._saver.under_way or (left > 0 and not wait):
            return
        await asyncio.sleep(max(0.0, left))
        step = await self._learn(self._saver.finish, wait)
        if step is not None:
            await self.buffer.commit(step)
            self.ledger.forget(step)
            self._controls.saved(step)
            self.archiver.start()

    async def keep_checkpoint(self) -> None:
        """Asked to stop: a checkpoint that is under way is worth waiting for, where the learner still lives."""
        try:
            async with asyncio.timeout(KEEP_S):
                await self._finish_checkpoint(wait=True)
        except (LearnerFailure, TimeoutError) as error:
            why = str(error) or f"it wasn't written within {KEEP_S:g} s"
            self.log.warn(f"the checkpoint that was being written is given up, the one before it stands: {why}")

    def _update_checkpoint(self) -> None:
        self.state.wall_s = time.monotonic() - self._began
        if self.checkpoints.newest() is not None:
            self.checkpoints.update_state(self.state)
