"""The lives of the learner: when a rank is lost, a new group of ranks goes on from the newest checkpoint.

    newest checkpoint ─▶ ranks ─▶ load ─▶ later leases ready again ─▶ publish as a new version ─▶ Training.run ─▶ done
          ▲  (or the cold start)             metrics, ledger cut back                                 │
          └───────────────────────────────────────────────────────── LearnerFailure, LeaseLost ◀──────┘

A run's first start is a life like any other. The actors sample meanwhile, so a new life finds groups ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klong_rl import resume
from klong_rl.blocking import in_thread
from klong_rl.buffer import Buffer
from klong_rl.buffer.archive import Archiver
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.config import RunConfig
from klong_rl.fleet import Fleet
from klong_rl.ledger import Ledger
from klong_rl.live_on import live_on
from klong_rl.pacing import Pacing
from klong_rl.results import RunLog
from klong_rl.steering.controls import Controls
from klong_rl.tasks.base import TaskFamily
from klong_rl.training import Training


class LearnerLives:
    """Trains a run to its end. `new_learner` makes a learners.group.LearnerGroup, with the model of the cold start."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        checkpoints: Checkpoints,
        buffer: Buffer,
        fleet: Fleet,
        family: TaskFamily,
        archiver: Archiver,
        log: RunLog,
        pacing: Pacing,
        controls: Controls,
        new_learner: Callable[[], Any],
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.checkpoints = checkpoints
        self.buffer = buffer
        self.fleet = fleet
        self.family = family
        self.archiver = archiver
        self.log = log
        self.pacing = pacing
        self.controls = controls
        self._new_learner = new_learner

    async def run(self, stage: int | None) -> None:
        """Train through the stages that are left, entering at `stage` if one is asked for.

        Raises as `live_on`.
        """
        first, began = self.checkpoints.newest(), time.monotonic() - self._state(stage).wall_s

        def begin() -> RunState:
            # Once this launch has made a checkpoint, that says where the run stands.
            return self._state(stage if self.checkpoints.newest() == first else None)

        await live_on(begin, lambda state: self._live(state, began), self.log.warn)

    def _state(self, stage: int | None) -> RunState:
        state, _ = resume.where_to_begin(self.checkpoints, self.config.curriculum.stages, stage)
        return state

    async def _live(self, state: RunState, began: float) -> None:
        """One group of ranks, from the newest checkpoint (whose state is `state`) to the end of the run, or its own."""
        self.log.begin(state)
        ledger = Ledger(self.run_dir, state.step)
        learner = None
        try:
            self.log.phase("starting learner", state.curriculum.stage)
            learner = await in_thread(self._new_learner)
            if (newest := self.checkpoints.newest()) is not None:
                await in_thread(learner.load, newest / "megatron", stop=learner.shutdown)
            await resume.restore_buffer(self.buffer, state)
            training = Training(
                self.config,
                state,
                self.buffer,
                self.fleet,
                learner,
                self.family,
                self.checkpoints,
                self.archiver,
                ledger,
                self.log,
                self.pacing,
                began,
                self.controls,
            )
            await training.publish_restored()
            self.log.phase("starting engines", state.curriculum.stage)
            await self.fleet.start()
            try:
                await training.run()
            except asyncio.CancelledError:
                await training.keep_checkpoint()
                raise
        finally:
            if learner is not None:
                learner.shutdown()
            self.checkpoints.discard()
            ledger.close()
