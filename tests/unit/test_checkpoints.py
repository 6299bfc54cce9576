"""Checkpoints: whole or absent, the newest found; and what a run's lineage says of staleness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.checkpoints import Checkpoints, RunState


def write(folder):
    (folder / "weights").write_text("w")


def saved(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(RunState(step=step, lineage=[1, step]), write)


def test_the_newest_is_found_and_only_so_many_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    saved(checkpoints, 4, 8, 12)
    assert [path.name for path in checkpoints.all()] == ["step-000008", "step-000012"]
    assert Checkpoints.state(checkpoints.newest()) == RunState(step=12, lineage=[1, 12])
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


@given(st.sets(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 5))
def test_the_oldest_version_allowed_is_exactly_as_stale_as_the_bound(versions, bound):
    state = RunState(lineage=sorted(versions))
    oldest = state.oldest_version(bound)
    assert state.staleness(oldest) <= bound
    earlier = [version for version in versions if version < oldest]
    assert all(state.staleness(version) > bound for version in earlier)


def test_versions_of_a_lost_lineage_make_nothing_stale():
    """Versions 4 to 9 were published after the checkpoint at version 3 and did not survive; 10 is the next."""
    state = RunState(lineage=[1, 2, 3, 10])
    assert state.staleness(3) == 1 and state.oldest_version(1) == 3
    assert state.staleness(7) == 1, "sampled by weights that are gone, between the two that survive"
