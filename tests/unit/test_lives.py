"""From which state a learner's next life begins, and when there is none."""

import pytest

from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.config import CurriculumConfig, RunConfig, StageConfig
from klong_rl.errors import LearnerFailure
from klong_rl.live_on import FUTILE_LIVES
from klong_rl.lives import LearnerLives
from tests.run_states import saved, standing

STAGES = [StageConfig(steps=4), StageConfig(steps=4), StageConfig(steps=4)]


class Log:
    """What was begun, and what was said."""

    def __init__(self) -> None:
        self.states: list[RunState] = []
        self.warnings: list[str] = []

    def begin(self, state: RunState) -> None:
        self.states.append(state)

    def phase(self, phase: str, stage: int) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Scene:
    """A learner that never comes up. Each of `events` says what a life achieved before it ended."""

    def __init__(self, tmp_path, *events) -> None:
        self.checkpoints = Checkpoints(tmp_path, keep=2)
        self.log, self._events = Log(), list(events)
        config = RunConfig(curriculum=CurriculumConfig(stages=STAGES))
        self.lives = LearnerLives(
            config, tmp_path, self.checkpoints, None, None, None, None, self.log, None, None, self._new_learner
        )

    def save(self, **state) -> None:
        saved(self.checkpoints, standing(**state))

    def _new_learner(self):
        if self._events:
            self._events.pop(0)(self)
        raise LearnerFailure(1, "setup", "no answer in 600 s")

    async def end(self, stage=None) -> None:
        with pytest.raises(LearnerFailure, match="learner rank 1 failed in setup: no answer in 600 s"):
            await self.lives.run(stage)


def trained(steps: int):
    def event(scene: Scene) -> None:
        scene.log.states[-1].step += steps

    return event


async def test_lives_that_get_no_further_end_the_run(tmp_path):
    scene = Scene(tmp_path)
    await scene.end()
    assert len(scene.log.states) == FUTILE_LIVES == 3
    assert scene.log.warnings[0] == (
        "learner rank 1 failed in setup: no answer in 600 s (after step 0); a new learner goes on after step 0"
    )


async def test_only_a_step_beyond_all_earlier_ones_counts_as_progress(tmp_path):
    """Without a checkpoint each life begins at 0: the second comes as far as the first, the third further."""
    scene = Scene(tmp_path, trained(2), trained(2), trained(3))
    await scene.end()
    assert len(scene.log.states) == 3 + FUTILE_LIVES


async def test_the_stage_asked_for_holds_until_this_launch_has_a_checkpoint(tmp_path):
    scene = Scene(tmp_path, trained(1), lambda scene: scene.save(stage=3, stage_step=1, step=9, lineage={1: 9}))
    scene.save(stage=1, stage_step=4, step=4, lineage={1: 4})
    await scene.end(stage=2)
    places = [(state.curriculum.stage, state.curriculum.stage_step) for state in scene.log.states[:3]]
    assert places == [
        (2, 0),
        (2, 0),
        (3, 1),
    ]
