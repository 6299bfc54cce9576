"""Advantage rules against worked examples, plain arithmetic and their defining properties."""

import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.advantages import RULES, dr_grpo, grpo, klong, rloo
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
