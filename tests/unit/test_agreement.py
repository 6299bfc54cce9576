"""The log-prob gap: means over tokens, maxima over all."""

import numpy as np
import pytest

from klong_rl.agreement import Gap


def test_gaps_add_up_by_tokens():
    a = Gap.between(np.array([-1.0, -2.0], np.float32), np.array([-1.0, -2.5], np.float32))
    b = Gap.of_step({"logprob_gap_tokens": 6.0, "logprob_gap_mean": 0.1, "logprob_gap_max": 0.3})
    assert (a.tokens, a.mean, a.max) == (2.0, 0.25, 0.5)
    both = a + b
    assert (both.tokens, both.max) == (8.0, 0.5)
    assert both.mean == pytest.approx((0.5 + 0.6) / 8)


def test_no_tokens_no_gap():
    assert Gap().mean == 0.0 and Gap.between(np.zeros(0), np.zeros(0)) == Gap()
