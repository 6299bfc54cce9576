"""Checkpoints: whole or absent, the newest found, written beside training; and a state that people can read."""

import json

import pytest

from klong_rl.checkpoints import Checkpoints, RunState, Saver
from tests.run_states import saved


class Writing:
    """A learner whose weights are a number. What it has begun to write is there once it is `done`."""

    def __init__(self) -> None:
        self.weights, self.done, self._begun = 0, True, None

    def begin_save(self, folder):
        self._begun = folder, self.weights

    def finish_save(self, wait):
        if not (wait or self.done):
            return False
        folder, weights = self._begun
        (folder / "weights").write_text(str(weights))
        return True


def test_the_newest_is_found_and_only_so_many_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for step in (4, 8, 12):
        saved(checkpoints, RunState(step=step, lineage={1: 0, 2: step}))
    assert [path.name for path in checkpoints.all()] == ["step-000008", "step-000012"]
    assert Checkpoints.state(checkpoints.newest()) == RunState(step=12, lineage={1: 0, 2: 12})


def test_it_holds_learner_and_run_as_they_were_when_it_was_begun(tmp_path):
    checkpoints, learner, state = Checkpoints(tmp_path, keep=2), Writing(), RunState(step=4)
    saver = Saver(checkpoints, learner)
    learner.weights, learner.done = 7, False
    saver.begin(state)
    state.step, learner.weights = 5, 8
    assert saver.finish(wait=False) is None and saver.under_way and checkpoints.newest() is None
    learner.done = True
    assert saver.finish(wait=False) == 4 and not saver.under_way
    assert Checkpoints.state(checkpoints.newest()).step == 4
    assert (checkpoints.newest() / "weights").read_text() == "7"
    assert saver.finish(wait=True) is None, "there is none under way"


def test_one_that_is_not_finished_is_absent_and_its_remains_go(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    saved(checkpoints, RunState(step=4))
    for _ in range(2):  # by two lives of a learner: the writers of the first may not have ended yet
        Saver(checkpoints, Writing()).begin(RunState(step=8))
    assert len(list(checkpoints.folder.glob(".step-000008.*.partial"))) == 2
    assert checkpoints.newest().name == "step-000004"
    checkpoints.discard()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000004"]


def test_one_that_cannot_be_begun_is_absent(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    saved(checkpoints, RunState(step=4))

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.begin(RunState(step=8), fail)
    assert checkpoints.newest().name == "step-000004"


def test_what_a_killed_launch_left_half_written_is_cleared_and_never_loaded(tmp_path):
    saved(Checkpoints(tmp_path, keep=2), RunState(step=4))
    partial = tmp_path / "checkpoints" / ".step-000008.99.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    again = Checkpoints(tmp_path, keep=2)
    assert not partial.exists() and again.newest().name == "step-000004"


def test_a_state_can_be_replaced_in_place(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, RunState(step=4))
    checkpoints.update_state(RunState(step=4, evals={"cold-s1": 0.5}))
    assert Checkpoints.state(checkpoints.newest()).evals == {"cold-s1": 0.5}


def test_a_state_does_not_go_to_the_weights_of_another_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, RunState(step=4))
    with pytest.raises(ValueError, match="is of step 4, the state to note there of step 5"):
        checkpoints.update_state(RunState(step=5))
    assert Checkpoints.state(checkpoints.newest()).step == 4


def test_the_state_is_readable_and_says_how_far_the_weights_are_from_a_version(tmp_path):
    """Version 3 was of step 2 and did not survive; 4 repeats the weights of 2."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, RunState(step=1, lineage={1: 0, 2: 1, 4: 1}))
    text = (checkpoints.newest() / "state.json").read_text()
    assert json.loads(text)["lineage"] == {"1": 0, "2": 1, "4": 1} and '    "4": 1' in text.splitlines()
    state = Checkpoints.state(checkpoints.newest())
    assert state.version == 4
    assert [state.staleness(version) for version in (1, 2, 3, 4)] == [1, 0, 1, 0]
    assert state.within_reach(0) == (2, (3,)) and state.within_reach(1) == (1, ())
