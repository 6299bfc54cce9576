"""What a group becomes, and what its cut episodes do to the others."""

import pytest

from klong_rl.advantages import dr_grpo, klong, rloo
from klong_rl.buffer.records import Member
from klong_rl.groups import windows_of
from klong_rl.types import Outcome, Verdict
from tests.episodes import segment, spec

# Scores 1.0 and 0.5, submitted; 0.0, cut by the timeout.
GROUP = [
    Member(spec("g", i, 3), Outcome(kind=kind), Verdict(score=score), [segment(f"g-{i}", 0)])
    for i, (kind, score) in enumerate((("submitted", 1.0), ("submitted", 0.5), ("timeout", 0.0)))
]


@pytest.mark.parametrize(
    "cut, advantages",
    [
        ("score", {"g-0": 0.5, "g-1": 0.0, "g-2": -0.5}),
        ("mask", {"g-0": 0.5, "g-1": 0.0}),
        ("exclude", {"g-0": 0.25, "g-1": -0.25}),
    ],
)
def test_cut_episodes_count_as_they_scored_or_are_masked_or_excluded(cut, advantages):
    assert {window.episode: window.advantage for window in windows_of(GROUP, klong, cut)} == advantages


@pytest.mark.parametrize("cut, n_windows", [("score", 3), ("mask", 0), ("exclude", 0)])
def test_a_group_that_was_cut_whole(cut, n_windows):
    cut_whole = [member._replace(outcome=Outcome(kind="turn_limit")) for member in GROUP]
    assert len(windows_of(cut_whole, klong, cut)) == n_windows


def test_evaluation_and_what_was_dropped_become_no_windows():
    dropped = Member(spec("g", 0), None, None, [])
    evaluation = Member(spec("g", 0, purpose="eval"), Outcome(kind="submitted"), Verdict(score=1.0), [])
    assert windows_of([dropped, evaluation], klong) == []


def test_a_late_episode_is_set_against_those_that_came_in_and_no_other_late_one():
    came_in = {"g-7": 0.25, "g-8": 0.75}
    advantages = {w.episode: w.advantage for w in windows_of(GROUP, rloo, came_in=came_in)}
    assert advantages == {"g-0": 0.5, "g-1": 0.0, "g-2": -0.5}
    with_its_own = {w.episode: w.advantage for w in windows_of(GROUP, dr_grpo, came_in=came_in)}
    assert with_its_own == pytest.approx({"g-0": 1 / 3, "g-1": 0.0, "g-2": -1 / 3})
