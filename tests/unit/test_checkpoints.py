"""Checkpoints: whole or absent, the newest found; and a state that people can read."""

import json

import pytest

from klong_rl.checkpoints import Checkpoints, RunState


def write(folder):
    (folder / "weights").write_text("w")


def saved(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(RunState(step=step, lineage={1: 0, 2: step}), write)


def test_the_newest_is_found_and_only_so_many_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    saved(checkpoints, 4, 8, 12)
    assert [path.name for path in checkpoints.all()] == ["step-000008", "step-000012"]
    assert Checkpoints.state(checkpoints.newest()) == RunState(step=12, lineage={1: 0, 2: 12})
    assert (checkpoints.newest() / "weights").read_text() == "w"


def test_one_that_fails_midway_is_absent_and_its_remains_go(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    saved(checkpoints, 4)

    def fail(folder):
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(RunState(step=8), fail)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000004"]


def test_what_a_killed_launch_left_half_written_is_cleared_and_never_loaded(tmp_path):
    saved(Checkpoints(tmp_path, keep=2), 4)
    partial = tmp_path / "checkpoints" / ".step-000008.99.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    again = Checkpoints(tmp_path, keep=2)
    assert not partial.exists() and again.newest().name == "step-000004"


def test_a_state_can_be_replaced_in_place(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, 4)
    checkpoints.update_state(RunState(step=4, evals={"cold-s1": 0.5}))
    assert Checkpoints.state(checkpoints.newest()).evals == {"cold-s1": 0.5}


def test_the_state_is_readable_and_says_how_far_the_weights_are_from_a_version(tmp_path):
    """Version 3 was of step 2 and did not survive; 4 repeats the weights of 2."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(RunState(step=1, lineage={1: 0, 2: 1, 4: 1}), write)
    text = (checkpoints.newest() / "state.json").read_text()
    assert json.loads(text)["lineage"] == {"1": 0, "2": 1, "4": 1} and '    "4": 1' in text.splitlines()
    state = Checkpoints.state(checkpoints.newest())
    assert state.version == 4
    assert [state.staleness(version) for version in (1, 2, 3, 4)] == [1, 0, 1, 0]
    assert state.within_reach(0) == (2, (3,)) and state.within_reach(1) == (1, ())
