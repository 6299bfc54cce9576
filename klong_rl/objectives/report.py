"""What a researcher watches, as sums that add up over micro-batches and ranks, and the metrics they come to.

    measure, per micro-batch ──▶ sums over target tokens ──added over the step──▶ summarize ──▶ metrics.jsonl

Quantiles don't add up, histograms do. The log-ratio's has bins that grow by a tenth on either side of a middle one,
which ends at 1e-6. So its quantiles are right to 5 % of their size, near 0 and far out (DDSketch, arXiv 1908.10693).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from klong_rl.objectives import TargetTokens
from klong_rl.objectives.aggregation import count
from klong_rl.objectives.ratio import LOG_RATIO_MAX, bounded, k3

MIDDLE, GROWTH = 1e-6, 1.1
SIDE_BINS = math.ceil(math.log(LOG_RATIO_MAX / MIDDLE, GROWTH))
QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99}
HISTOGRAM = "log_ratio_histogram"
GAP_HISTOGRAM = "logprob_gap_histogram"
GAP_QUANTILES = {"logprob_gap_p50": 0.5, "logprob_gap_p90": 0.9, "logprob_gap_p99": 0.99}


@torch.no_grad()
def measure(tokens: TargetTokens) -> dict[str, torch.Tensor]:
    """Sums over the tokens of ratio policy / sampler, KL estimates, staleness and entropy."""
    raw_N = tokens.logprobs_N - tokens.sampler_logprobs_N
    log_ratio_N = bounded(raw_N)
    ratio_N = log_ratio_N.exp()
    sums = {
        "ratio_mean": ratio_N.sum(),
        "ratio_square_mean": ratio_N.square().sum(),
        "ratio_extreme": (raw_N != log_ratio_N).sum(),
        "kl_sampler_k1": -log_ratio_N.sum(),
        "kl_sampler_k3": k3(log_ratio_N).sum(),
        "staleness_mean": tokens.staleness_N.sum(),
        HISTOGRAM: histogram(log_ratio_N),
    }
    if tokens.reference_logprobs_N is not None:
        to_reference_N = bounded(tokens.reference_logprobs_N - tokens.logprobs_N)
        sums |= {"kl_reference_k1": -to_reference_N.sum(), "kl_reference_k3": k3(to_reference_N).sum()}
    if tokens.entropies_N is not None:
        sums["entropy"] = tokens.entropies_N.sum()
    return sums


def histogram(log_ratio_N: torch.Tensor, counted_N: torch.Tensor | None = None) -> torch.Tensor:
    """Counts, int64 [2 SIDE_BINS + 1], of all or of those that are `counted_N` (bool).

    The middle one is of |x| <= MIDDLE. NaN, which the loss shows, counts there.
    """
    log_ratio_N = log_ratio_N.nan_to_num(nan=0.0)
    steps_N = ((log_ratio_N.abs() / MIDDLE).clamp(min=1).log() / math.log(GROWTH)).ceil().clamp(max=SIDE_BINS)
    bins_N = (steps_N * log_ratio_N.sign()).long() + SIDE_BINS
    return count(bins_N, 2 * SIDE_BINS + 1, counted_N)


def quantile(counts: np.ndarray, q: float) -> float:
    """The q-quantile of what was counted, at the middle of its bin; `counts` is not empty."""
    step = int(np.searchsorted(counts.cumsum(), q * counts.sum())) - SIDE_BINS
    return math.copysign(MIDDLE * GROWTH ** (abs(step) - 0.5), step) if step else 0.0


def summarize(sums: Mapping[str, float | np.ndarray], n_tokens: float) -> dict[str, float]:
    """Metrics of a step from the totals of its sums over `n_tokens` target tokens: means, quantiles, `ess_fraction`.

    The effective sample size, (sum r)^2 / sum r^2, is given as a fraction of the tokens: 1 when all ratios are equal.
    """
    means = {name: value / max(n_tokens, 1.0) for name, value in sums.items() if name not in (HISTOGRAM, GAP_HISTOGRAM)}
    if squares := means.pop("ratio_square_mean", 0.0):
        means["ess_fraction"] = means["ratio_mean"] ** 2 / squares
    counts = np.asarray(sums.get(HISTOGRAM, ()))
    if counts.any():
        means |= {name: math.exp(quantile(counts, q)) for name, q in QUANTILES.items()}
    gaps = np.asarray(sums.get(GAP_HISTOGRAM, ()))
    if gaps.any():
        means |= {name: quantile(gaps, q) for name, q in GAP_QUANTILES.items()}
    return {name: float(value) for name, value in means.items()}
