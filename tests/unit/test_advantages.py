"""Advantage rules against worked examples, plain arithmetic and their defining properties."""

import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.advantages import RULES, advantage_rule, dr_grpo, grpo, klong, rloo
from klong_rl.config import LearnerConfig
from klong_rl.errors import UserError
from klong_rl.types import Window

EMPTY = Window(
    id="w",
    episode="e",
    group="g",
    stage=1,
    tokens_T=np.zeros(0, np.int32),
    targets_T=np.zeros(0, np.uint8),
    logprobs_T=np.zeros(0, np.float32),
    versions=(),
)

SCORES = st.integers(0, 100).map(lambda percent: percent / 100)
GROUPS = st.lists(st.tuples(SCORES, st.integers(1, 4)), min_size=1, max_size=12)


def group(*episodes):
    """The windows of episodes given as (score, number of windows)."""
    return [
        msgspec.structs.replace(EMPTY, episode=f"e{i}", score=score)
        for i, (score, windows) in enumerate(episodes)
        for _ in range(windows)
    ]


def test_worked_examples():
    """Episode 0 (score 1) gave two windows, episodes 1 and 2 (scores 0 and 0.5) one."""
    windows = group((1.0, 2), (0.0, 1), (0.5, 1))
    assert klong(windows) == pytest.approx([0.375, 0.375, -0.625, -0.125])  # the mean is over windows
    assert dr_grpo(windows) == pytest.approx([0.5, 0.5, -0.5, 0.0])  # over episodes
    assert grpo(windows) == pytest.approx([1.5**0.5, 1.5**0.5, -(1.5**0.5), 0.0])
    assert rloo(windows) == pytest.approx([0.75, 0.75, -0.75, 0.0])


@given(GROUPS)
def test_rules_are_their_papers_sums(episodes):
    windows, scores = group(*episodes), [score for score, _ in episodes]
    deviation = statistics.pstdev(scores)
    for i, window in enumerate(windows):
        others = [score for e, score in enumerate(scores) if f"e{e}" != window.episode]
        assert dr_grpo(windows)[i] == pytest.approx(window.score - statistics.fmean(scores), abs=1e-9)
        assert grpo(windows)[i] == pytest.approx(
            (window.score - statistics.fmean(scores)) / deviation if len(set(scores)) > 1 else 0.0, abs=1e-9
        )
        assert rloo(windows)[i] == pytest.approx(window.score - statistics.fmean(others) if others else 0.0, abs=1e-9)
        assert klong(windows)[i] == pytest.approx(window.score - statistics.fmean(w.score for w in windows), abs=1e-9)


@given(GROUPS)
def test_advantages_sum_to_zero_over_what_the_mean_is_over(episodes):
    assert sum(klong(group(*episodes))) == pytest.approx(0, abs=1e-9)
    for rule in (dr_grpo, grpo, rloo):
        assert sum(rule(group(*((score, 1) for score, _ in episodes)))) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(GROUPS)
def test_the_order_of_scores_is_kept(rule, episodes):
    windows = group(*episodes)
    for a, one in zip(rule(windows), windows, strict=True):
        for b, other in zip(rule(windows), windows, strict=True):
            assert a <= b or one.score > other.score


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("episodes", [[], [(0.7, 1)], [(0.7, 3)], [(0.1, 1)] * 3, [(0.1, 2), (0.1, 1), (0.1, 4)]])
def test_where_there_is_nothing_to_compare_advantages_are_zero(rule, episodes):
    """0.1 + 0.1 + 0.1 over 3 is not 0.1 to the last bit, and a deviation of 1e-17 must not be divided by."""
    assert rule(group(*episodes)) == pytest.approx([0.0] * len(group(*episodes)), abs=1e-15)


def too_few(windows):
    return [0.0 for window in windows if window.score]


def not_finite(windows):
    return [window.score / (window.score - window.score or float("nan")) for window in windows]


def unlike(windows):
    """Fails on equal scores, as a rule that divides by their deviation does."""
    return [window.score / statistics.pstdev(w.score for w in windows) for window in windows]


@pytest.mark.parametrize(
    "rule, trouble",
    [
        (too_few, "scores [0, 1, 1, 0.5], gave 3 advantages; it is to give one a window"),
        (not_finite, "gave [nan, nan, nan, nan]; all advantages are to be finite"),
        (unlike, "scores [0, 0], failed: ZeroDivisionError: float division by zero"),
    ],
)
def test_a_rule_of_ones_own_that_fails_on_a_usual_group_is_refused_before_anything_runs(rule, trouble):
    name = f"{__name__}.{rule.__name__}"
    with pytest.raises(UserError) as refused:
        advantage_rule(LearnerConfig(advantage=name))
    assert str(refused.value).startswith(f"learner.advantage={name}, given") and trouble in str(refused.value)


def test_a_rule_of_ones_own_that_does_what_ours_does_passes():
    windows = group((1.0, 2), (0.0, 1))
    assert advantage_rule(LearnerConfig(advantage="klong_rl.advantages.rloo"))(windows) == rloo(windows)
