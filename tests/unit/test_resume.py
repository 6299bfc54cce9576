"""Where a launch goes on, in state and in words."""

import pytest

from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.config import StageConfig
from klong_rl.errors import UserError
from klong_rl.resume import check_same_life, restore_buffer, where_to_begin
from tests.run_states import saved, standing

STAGES = [StageConfig(steps=4), StageConfig(steps=4), StageConfig(steps=4)]


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, keep=2)


def at(checkpoints: Checkpoints, **state) -> None:
    saved(checkpoints, standing(**state))


def test_a_new_run_begins_at_stage_1_without_a_word(checkpoints):
    state, words = where_to_begin(checkpoints, STAGES, None)
    assert (state.curriculum.stage, state.step, words) == (1, 0, "")


def test_a_new_run_may_enter_later(checkpoints):
    state, words = where_to_begin(checkpoints, STAGES, 3)
    assert (state.curriculum.stage, state.curriculum.stage_step) == (3, 0)
    assert words == "entering stage 3 at step 1 of 4, from the cold start"


def test_a_run_goes_on_from_its_newest_checkpoint(checkpoints):
    at(checkpoints, stage=2, stage_step=2, step=6)
    state, words = where_to_begin(checkpoints, STAGES, None)
    assert (state.curriculum.stage, state.curriculum.stage_step, state.step) == (2, 2, 6)
    assert words == "entering stage 2 at step 3 of 4, from checkpoint checkpoints/step-000006"


def test_the_stage_it_stands_in_is_gone_on_with_and_not_begun_again(checkpoints):
    at(checkpoints, stage=2, stage_step=2, step=6)
    assert where_to_begin(checkpoints, STAGES, 2)[0].curriculum.stage_step == 2


def test_another_stage_starts_at_its_first_step_and_keeps_what_was_measured_before_it(checkpoints):
    evals = {"cold-s3": 0.1, "after-s1": 0.5, "before-s2": 0.4, "after-s3": 0.2}
    at(checkpoints, stage=2, stage_step=2, step=6, evals=evals)
    state, words = where_to_begin(checkpoints, STAGES, 3)
    assert (state.curriculum.stage, state.curriculum.stage_step, state.step) == (3, 0, 6)
    assert state.evals == {"cold-s3": 0.1, "after-s1": 0.5, "before-s2": 0.4}
    assert "entering stage 3 at step 1 of 4, from checkpoint" in words


def test_a_finished_run_stays_so_unless_a_stage_is_asked_for(checkpoints):
    at(checkpoints, stage=3, stage_step=4, step=12, finished=True)
    assert where_to_begin(checkpoints, STAGES, None)[0].curriculum.finished
    state, _ = where_to_begin(checkpoints, STAGES, 3)
    assert (state.curriculum.finished, state.curriculum.stage_step) == (False, 0)


def test_a_stage_that_was_stopped_before_its_evaluation_is_at_its_end(checkpoints):
    at(checkpoints, stage=2, stage_step=4, step=8)
    assert "entering stage 2 at its end" in where_to_begin(checkpoints, STAGES, None)[1]


class RecordingBuffer:
    """Answers and remembers what it was asked."""

    def __init__(self, committed: int = -1, version: int = 0) -> None:
        self._committed, self._version = committed, version
        self.calls: list[tuple] = []

    async def committed_step(self) -> int:
        return self._committed

    async def policy_version(self) -> int:
        return self._version

    async def commit(self, step: int) -> None:
        self.calls.append(("commit", step))

    async def rollback(self, step: int) -> None:
        self.calls.append(("rollback", step))


async def test_what_the_weights_hold_is_consumed_before_the_rest_is_given_out_again():
    buffer, state = RecordingBuffer(version=9), RunState(step=6, lineage={1: 0, 5: 6})
    await restore_buffer(buffer, state)
    assert buffer.calls == [("commit", 6), ("rollback", 6)]
    assert state.lineage == {1: 0, 5: 6}


@pytest.mark.parametrize("version, lineage", [(0, {}), (1, {1: 0}), (4, {1: 0})])
async def test_version_1_was_the_cold_start_s_however_often_it_is_come_back_to(version, lineage):
    state = RunState()
    await restore_buffer(RecordingBuffer(version=version), state)
    assert state.lineage == lineage


async def test_a_buffer_ahead_of_the_newest_checkpoint_is_refused(tmp_path):
    await check_same_life(RecordingBuffer(committed=6), RunState(step=6), tmp_path)
    with pytest.raises(UserError, match="committed step 8, the newest checkpoint is of step 6"):
        await check_same_life(RecordingBuffer(committed=8), RunState(step=6), tmp_path)
