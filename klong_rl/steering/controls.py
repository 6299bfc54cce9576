"""The driver's side of steering: takes commands, answers them, and brings about what is wanted.

    scale       here, beside training: Fleet.scale
    pause       Fleet.hold: no actor claims; Training takes no step: it asks `held` before it leases
    promote     Training asks `leave` at the end of a step, and the curriculum moves
    snapshot    Training asks `wants_checkpoint` between two steps and at the end of one
    stop        here, once all is drained and kept

`clock` is what deadlines of the run count on: it stands still while the run is held.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from klong_rl.buffer import Buffer
from klong_rl.config import RunConfig
from klong_rl.curriculum import Move
from klong_rl.steering.mailbox import Mailbox
from klong_rl.steering.wanted import DONE, Answer, Now, Steered, Wanted, at_launch, configured, decide

LOOK_S = 0.5  # between two looks for commands: a person waits
UNDER_WAY = ("running", "sealed")  # states of episodes that a drain waits for


class Controls:
    """Of one launch. `load` it before the actors are made."""

    def __init__(self, config: RunConfig, mailbox: Mailbox, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._configured = {"rollout": config.actors.count, "judge": config.judge.count}
        self._mailbox = mailbox
        self._monotonic = monotonic
        self._state = Steered()
        self._noted = self._state
        self._held_since: float | None = None
        self._held_s = 0.0
        self._stage, self._step, self._saved = 1, 0, 0
        self._scaling: asyncio.Task | None = None
        self._in_step = False

    async def load(self, stage: int, step: int, entered: bool) -> None:
        """Take up what an earlier launch was told. `entered`: this one was told where to enter, by +stage=N."""
        self._stage, self._step, self._saved = stage, step, step
        found = await self._mailbox.state()
        gone = found.wanted.stop_for
        answers = (Answer(id=gone, status=DONE, text="the run was launched again"),) if gone else ()
        self._noted, self._state = found, Steered(answers=found.answers)
        self._want(at_launch(found.wanted, stage, entered), *answers)

    # What training asks

    @property
    def held(self) -> bool:
        """No step may be taken now."""
        return self._state.wanted.held

    @property
    def paused(self) -> bool:
        return self._state.wanted.paused

    @property
    def leave(self) -> int:
        """The stage that is to be left at the end of a step; 0: none."""
        return self._state.wanted.leave

    @property
    def wants_checkpoint(self) -> bool:
        """Someone waits for a checkpoint of what is trained by now."""
        wanted = self._state.wanted
        return bool(wanted.checkpoint_for or (wanted.stop_for and wanted.drain)) and self._saved < self._step

    @property
    def actors(self) -> dict[str, int]:
        """Wanted of each pool."""
        return configured(self._state.wanted, self._configured)

    @property
    def first_actors(self) -> dict[str, int]:
        """With which a launch begins; what scaling added comes after, so that a run that lost nodes still starts."""
        return {pool: min(n, self._configured[pool]) for pool, n in self.actors.items()}

    def clock(self) -> float:
        """Seconds that the run was not held, since some moment."""
        now = self._monotonic()
        return now - self._held_s - (now - self._held_since if self._held_since is not None else 0.0)

    # What training tells

    def begins(self) -> None:
        """A step: its windows are leased."""
        self._in_step = True

    def stands(self, stage: int, step: int) -> None:
        """Where the run is, between two steps."""
        self._stage, self._step, self._in_step = stage, step, False

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is durable."""
        self._saved = step

    def entered(self, move: Move) -> None:
        """The curriculum has moved, and a checkpoint holds it."""
        self._stage = move.to or move.origin
        if self.leave == move.origin:
            self._want(replace(self._state.wanted, leave=0))

    # The loop

    async def run(self, fleet: Any, buffer: Buffer, stop: Callable[[], None]) -> None:
        """Until cancelled. `stop` ends the launch."""
        fleet.hold(self.held)
        try:
            while True:
                await self._take_commands()
                fleet.hold(self.held)
                self._scale(fleet)
                self._tell_saved()
                await self._note()
                if await self._may_stop(buffer):
                    self._answer_stop()
                    await self._note()
                    stop()
                    return
                await asyncio.sleep(LOOK_S)
        finally:
            if self._scaling is not None:
                self._scaling.cancel()
                await asyncio.gather(self._scaling, return_exceptions=True)

    async def _take_commands(self) -> None:
        for command in await self._mailbox.asked():
            if self._state.answer(command.id) is None:
                now = Now(
                    time=await self._mailbox.now(),
                    **self.actors,
                    stage=self._stage,
                    stages=len(self._config.curriculum.stages),
                    step=self._step,
                    saved=self._saved,
                    recorded=bool(self._config.rollout.recorded),
                )
                self._want(*decide(self._state.wanted, command, now))
            await self._note([command.id])

    def _scale(self, fleet: Any) -> None:
        """Begin to bring the fleet to the size that is wanted, or see that it is there."""
        if self._scaling is not None:
            if not self._scaling.done():
                return
            self._scaling.result()
            self._scaling = None
        if not fleet.started:
            return
        wanted = self._state.wanted
        if fleet.sizes() != self.actors:
            if (gave_up := fleet.gave_up()) and wanted.rollout + wanted.judge:
                # What couldn't be started isn't tried for ever: the run goes on with what it has.
                text = f"stays at {_in_words(fleet.sizes())}: {gave_up}"
                self._want(
                    replace(wanted, **fleet.sizes(), scale_for=()),
                    *(Answer(id=each, status=DONE, text=text) for each in wanted.scale_for),
                )
                return
            self._scaling = asyncio.create_task(fleet.scale(**self.actors))
        elif wanted.scale_for and fleet.settled():
            text = f"actors at work: {_in_words(fleet.sizes())}"
            answers = (Answer(id=each, status=DONE, text=text) for each in wanted.scale_for)
            self._want(replace(wanted, scale_for=()), *answers)

    def _tell_saved(self) -> None:
        wanted = self._state.wanted
        if wanted.checkpoint_for and self._saved >= self._step:
            text = f"checkpoint of step {self._saved}: checkpoints/step-{self._saved:06d}"
            answers = (Answer(id=each, status=DONE, text=text) for each in wanted.checkpoint_for)
            self._want(replace(wanted, checkpoint_for=()), *answers)

    async def _may_stop(self, buffer: Buffer) -> bool:
        wanted = self._state.wanted
        if not wanted.stop_for or not wanted.drain:
            return bool(wanted.stop_for)
        states = (await buffer.counts()).states
        is_empty = not any(states.get(state) for state in UNDER_WAY)
        return is_empty and not self._in_step and self._saved >= self._step

    def _answer_stop(self) -> None:
        wanted = self._state.wanted
        after = f"stopped after step {self._step}" + (", nothing under way" if wanted.drain else "")
        self._want(replace(wanted, stop_for="", drain=False), Answer(id=wanted.stop_for, status=DONE, text=after))

    def _want(self, wanted: Wanted, *answers: Answer) -> None:
        was_held = self.held
        self._state = self._state.told(wanted, *answers) if answers else replace(self._state, wanted=wanted)
        if self.held and not was_held:
            self._held_since = self._monotonic()
        elif was_held and not self.held and self._held_since is not None:
            self._held_s += self._monotonic() - self._held_since
            self._held_since = None

    async def _note(self, answered: list[str] | None = None) -> None:
        if answered or self._state != self._noted:
            state = self._state
            await self._mailbox.note(state, answered)
            self._noted = state


def _in_words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{pool} {n}" for pool, n in sizes.items())
