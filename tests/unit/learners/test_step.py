"""Metrics of a step, merged over ranks."""

import numpy as np
import pytest
import torch

from klong_rl.objectives.report import GAP_HISTOGRAM, HISTOGRAM, SIDE_BINS, histogram
from learners.step import merge


def part(loss_sum, tokens, gap_sum, gap_tokens, gap_max, ratio, seconds):
    sums = {"loss_sum": loss_sum, "weight": tokens, "action_tokens": tokens, "windows": 1.0, "gap_sum": gap_sum}
    maxima = {"logprob_gap_max": gap_max, "grad_norm": 2.0, "forward_backward_s": seconds}
    return {"sums": sums | {"gap_tokens": gap_tokens, "ratio_mean": ratio}, "maxima": maxima}


def test_means_are_over_the_tokens_of_all_ranks():
    metrics = merge([part(3.0, 10.0, 1.0, 4.0, 0.5, 10.0, 1.0), part(1.0, 30.0, 0.0, 0.0, 0.1, 33.0, 2.0)])
    assert metrics["loss"] == pytest.approx(4 / 40)
    assert metrics["ratio_mean"] == pytest.approx(43 / 40)
    assert metrics["logprob_gap_mean"] == pytest.approx(1 / 4)
    assert (metrics["action_tokens"], metrics["windows"], metrics["logprob_gap_tokens"]) == (40, 2, 4)
    assert (metrics["logprob_gap_max"], metrics["grad_norm"], metrics["forward_backward_s"]) == (0.5, 2.0, 2.0)


def test_the_gap_s_quantiles_are_of_the_tokens_that_the_current_weights_sampled():
    gap_N, current_N = torch.tensor([0.01] * 90 + [0.5] * 10 + [5.0] * 50), torch.tensor([True] * 100 + [False] * 50)
    first = part(3.0, 150.0, 1.0, 100.0, 0.5, 10.0, 1.0)
    first["sums"][GAP_HISTOGRAM] = histogram(gap_N, current_N).numpy()
    metrics = merge([first])
    assert metrics["logprob_gap_p50"] == pytest.approx(0.01, rel=0.06)
    assert metrics["logprob_gap_p99"] == pytest.approx(0.5, rel=0.06)


def test_ranks_without_logits_add_nothing_but_their_times():
    whole = merge([part(3.0, 10.0, 1.0, 4.0, 0.5, 10.0, 1.0), {"sums": {}, "maxima": {"forward_backward_s": 5.0}}])
    assert whole["loss"] == pytest.approx(0.3)
    assert whole["forward_backward_s"] == 5.0


def test_quantiles_are_those_of_the_ranks_together():
    """A hundred tokens with a log-ratio of 0 on one rank, three with one of 20 on the other."""
    records = [part(1.0, 100.0, 0.0, 0.0, 0.0, 100.0, 1.0), part(1.0, 3.0, 0.0, 0.0, 0.0, 3.0, 1.0)]
    for record, place, count in zip(records, (SIDE_BINS, 2 * SIDE_BINS), (100, 3), strict=True):
        record["sums"][HISTOGRAM] = np.zeros(2 * SIDE_BINS + 1)
        record["sums"][HISTOGRAM][place] = count
    metrics = merge(records)
    assert (metrics["ratio_p01"], metrics["ratio_p50"]) == (1.0, 1.0)
    assert metrics["ratio_p99"] > 1e8
    assert HISTOGRAM not in metrics
