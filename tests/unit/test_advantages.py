"""KLong's baseline, against a worked example and its defining property."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.advantages import klong
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


def windows(scores):
    return [msgspec.structs.replace(EMPTY, score=score) for score in scores]


def test_the_mean_is_over_windows_not_episodes():
    """Episode a (score 1) gave two windows, episode b (score 0) one: the baseline is 2/3 and not 1/2."""
    assert klong(windows([1.0, 1.0, 0.0])) == pytest.approx([1 / 3, 1 / 3, -2 / 3])


@given(st.lists(st.integers(0, 100).map(lambda percent: percent / 100), min_size=1, max_size=50))
def test_advantages_sum_to_zero_and_keep_the_order_of_scores(scores):
    advantages = klong(windows(scores))
    assert sum(advantages) == pytest.approx(0, abs=1e-9)
    assert np.argsort(advantages, kind="stable").tolist() == np.argsort(scores, kind="stable").tolist()


def test_an_empty_group_has_no_advantages():
    assert klong([]) == []
