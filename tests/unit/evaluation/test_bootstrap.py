"""Confidence intervals, against the bootstrap distribution itself: every resample there is, counted."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klong_rl.evaluation.bootstrap import Interval, interval


def exact(values: list[float], level: float) -> tuple[float, float]:
    """The smallest and largest mean that a quantile at `level` may have, from all n^n resamples."""
    means = sorted(sum(some) / len(some) for some in itertools.product(values, repeat=len(values)))
    place = level * (len(means) - 1)
    spread = round(0.01 * len(means))  # ten thousand draws know the level to 0.002
    low, high = max(0, math.floor(place) - spread), min(len(means) - 1, math.ceil(place) + spread)
    return means[low], means[high]


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0, 0.5], [0.1, 0.2, 0.9, 0.95, 0.3], [0, 0, 0, 0, 0, 1]])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_it_has_the_quantiles_of_all_resamples(values, confidence):
    found, tail = interval(values, confidence), (1 - confidence) / 2
    for level, quantile in ((tail, found.low), (1 - tail, found.high)):
        low, high = exact([float(value) for value in values], level)
        assert low - 1e-9 <= quantile <= high + 1e-9


def test_of_many_it_is_what_the_central_limit_says():
    values = np.random.default_rng(1).random(400)
    found, error = interval(list(values)), values.std() / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_it_lies_around_the_mean_within_the_values_and_comes_out_the_same_again(values):
    found = interval(values, resamples=300)
    assert found == interval(values, resamples=300) and found.mean == pytest.approx(np.mean(values))
    if found.low is not None:
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_without_a_spread_there_is_no_interval():
    assert interval([]) is None
    assert interval([0.5]) == Interval(0.5) and interval([1.0, 1.0, 1.0]) == Interval(1.0)
