"""The numbers of an objective against plain arithmetic over all tokens, and their merging over micro-batches."""

import math

import numpy as np
import pytest
import torch

from klong_rl.objectives import build_objective
from klong_rl.objectives.ratio import k3
from klong_rl.objectives.report import HISTOGRAM, SIDE_BINS, histogram, quantile, summarize
from tests.unit.objectives.tokens import columns, target_tokens


def flat(tokens):
    return {name: np.array(sum(windows, [])) for name, windows in columns(tokens).items()}


def metrics(name, options, tokens):
    sums = build_objective(name, options)(tokens).sums
    return summarize({key: value.double().numpy() for key, value in sums.items()}, len(tokens.logprobs_N))


def test_means_are_over_all_target_tokens():
    tokens = target_tokens()
    c = flat(tokens)
    ratio = np.exp(c["logprobs"] - c["sampler_logprobs"])
    advantage = tokens.advantages_W[tokens.window_N].numpy()
    found = metrics("klong", {"kl_coefficient": 0.1}, tokens)
    to_reference = c["reference_logprobs"] - c["logprobs"]
    wanted = {
        "ratio_mean": ratio.mean(),
        "clip_fraction": (((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))).mean(),
        "kl_sampler_k1": -np.log(ratio).mean(),
        "kl_sampler_k3": (ratio - 1 - np.log(ratio)).mean(),
        "kl_reference_k1": -to_reference.mean(),
        "kl_reference_k3": (np.exp(to_reference) - 1 - to_reference).mean(),
        "entropy": c["entropies"].mean(),
        "staleness_mean": tokens.staleness_N.double().mean().item(),
        "ess_fraction": ratio.sum() ** 2 / (ratio**2).sum() / len(ratio),
        "ratio_extreme": 0.0,
        "masked_impossible": 0.0,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert 0 < wanted["clip_fraction"] < 1
    assert found.keys() - wanted.keys() == {"ratio_p01", "ratio_p50", "ratio_p99"}


def test_a_small_kl_has_digits_in_float32():
    assert k3(torch.tensor(1e-3)).item() == pytest.approx(1e-6 / 2 + 1e-9 / 6, rel=1e-3)


@pytest.mark.parametrize("importance", ["truncated", "masked"])
def test_importance_weights_are_reported(importance):
    tokens = target_tokens()
    c = flat(tokens)
    weights = np.exp(c["proximal_logprobs"] - c["sampler_logprobs"])
    inside = (weights >= 0.8) & (weights <= 1.25)
    found = metrics("klong", {"importance": importance, "importance_low": 0.8, "importance_high": 1.25}, tokens)
    if importance == "truncated":
        assert found["importance_mean"] == pytest.approx(np.minimum(weights, 1.25).mean())
        assert found["importance_truncated"] == pytest.approx((weights > 1.25).mean())
    else:
        assert found["importance_mean"] == pytest.approx((weights * inside).mean())
        assert found["masked_importance"] == pytest.approx(1 - inside.mean())


@pytest.mark.parametrize("scale", [1e-4, 0.1, 3.0])
def test_quantiles_of_merged_histograms_are_those_of_all_tokens(scale):
    values = np.random.default_rng(0).standard_normal(20_001) * scale
    counts = sum(histogram(torch.from_numpy(part)).numpy() for part in np.split(values, [10, 9_000]))
    assert counts.sum() == len(values)
    for q in (0.01, 0.05, 0.9, 0.99):
        assert quantile(counts, q) == pytest.approx(np.quantile(values, q), rel=0.06)


@pytest.mark.parametrize("value", [0.0, 1e-7, -1e-3, 0.5, -19.9, 20.0, 1e9, -math.inf, math.nan])
def test_every_value_has_a_bin(value):
    counts = histogram(torch.tensor([value], dtype=torch.float64))
    assert counts.sum() == 1 and len(counts) == 2 * SIDE_BINS + 1
    if 1e-6 <= abs(value) <= 20:
        assert quantile(counts.numpy(), 0.5) == pytest.approx(value, rel=0.05)


def test_without_tokens_there_are_no_quantiles():
    assert summarize({HISTOGRAM: np.zeros(3), "ratio_mean": 0.0, "ratio_square_mean": 0.0}, 0) == {"ratio_mean": 0.0}
