"""Confidence intervals by bootstrap over tasks: the tasks of a suite are the sample, its episodes are not independent.

The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
AT_ONCE = 1 << 22  # draws held in memory


class Interval(NamedTuple):
    """`low` and `high` are None where there is nothing to tell them by: all values are the same, or there is one."""

    mean: float
    low: float | None = None
    high: float | None = None


def interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The mean of one value a task, and between which means `confidence` of the resamples lie; None for no value."""
    if not values:
        return None
    if len(set(values)) == 1:
        return Interval(float(values[0]))
    sample, rng, means = np.asarray(values, np.float64), np.random.default_rng(seed), []
    step = max(1, AT_ONCE // len(values))
    for begin in range(0, resamples, step):
        n = min(step, resamples - begin)
        means.append(sample[rng.integers(len(values), size=(n, len(values)))].mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high))
