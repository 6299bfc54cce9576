"""The objectives against formulas written out token by token, and their independence of how a batch is cut."""

import math
from dataclasses import replace

import pytest
import torch

from klong_rl.errors import UserError
from klong_rl.objectives import TargetTokens, build_objective
from klong_rl.objectives.klong import Klong
from klong_rl.objectives.sft import Sft


def targets(window_N, advantages_W, logprobs_N=None, **given):
    """Target tokens with random log-probs, unless they are given."""
    window_N = torch.tensor(window_N, dtype=torch.int64)
    random = (-torch.rand(3, len(window_N)) * 2).unbind()
    values = {"sampler_logprobs_N": random[1], "reference_logprobs_N": random[2]} | given
    return TargetTokens(
        logprobs_N=random[0].clone().requires_grad_() if logprobs_N is None else logprobs_N,
        window_N=window_N,
        advantages_W=torch.tensor(advantages_W),
        staleness_N=torch.zeros_like(window_N),
        **values,
    )


@pytest.fixture
def tokens():
    """Four windows with targets in all but the last, ratios on both sides of the clip, both signs."""
    torch.manual_seed(0)
    return targets([0] * 5 + [1] * 7 + [2] * 3, [1.5, -0.7, 0.0, 2.0])


def by_hand(tokens, low, high, beta, window_mean):
    """KLong's loss and gradient in plain Python: min(r A, clip(r) A) less beta k3, token by token."""
    windows = tokens.window_N.tolist()
    loss, weight, gradient = 0.0, len(set(windows)) if window_mean else len(windows), []
    for n, w in enumerate(windows):
        share = 1 / windows.count(w) if window_mean else 1.0
        lp, a = tokens.logprobs_N[n].item(), tokens.advantages_W[w].item()
        r = math.exp(lp - tokens.sampler_logprobs_N[n].item())
        clipped = min(max(r, 1 - low), 1 + high)
        to_ref = tokens.reference_logprobs_N[n].item() - lp
        loss += share * (-min(r * a, clipped * a) + beta * (math.exp(to_ref) - to_ref - 1))
        slope = -r * a if r * a <= clipped * a else 0.0
        gradient.append(share * (slope + beta * (1 - math.exp(to_ref))))
    return loss, weight, torch.tensor(gradient)


@pytest.mark.parametrize("aggregation", ["token_mean", "window_mean"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_klong_is_the_formula_token_by_token(tokens, aggregation, beta):
    result = Klong(clip_low=0.2, clip_high=0.3, kl_coefficient=beta, aggregation=aggregation)(tokens)
    loss, weight, gradient = by_hand(tokens, 0.2, 0.3, beta, aggregation == "window_mean")
    result.loss_sum.backward()
    assert result.loss_sum.item() == pytest.approx(loss, rel=1e-5)
    assert result.weight.item() == weight
    torch.testing.assert_close(tokens.logprobs_N.grad, gradient, rtol=1e-4, atol=1e-6)


def test_klong_reports_clipping_ratio_and_kl_to_the_sampler(tokens):
    sums = Klong(clip_low=0.2, clip_high=0.2)(tokens).sums
    ratio = (tokens.logprobs_N - tokens.sampler_logprobs_N).exp().detach()
    advantage = tokens.advantages_W[tokens.window_N]
    clipped = ((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    assert sums["clip_fraction"].item() == clipped.sum().item() > 0
    assert sums["ratio_mean"].item() == pytest.approx(ratio.sum().item(), rel=1e-5)
    assert sums["kl_sampler_k3"].item() == pytest.approx((ratio - 1 - ratio.log()).sum().item(), rel=1e-4)


@pytest.mark.parametrize("objective", [Klong(), Klong(aggregation="window_mean"), Sft()])
def test_sums_add_up_however_the_windows_are_cut(tokens, objective):
    def windows(first, last):
        picked = (tokens.window_N >= first) & (tokens.window_N < last)
        return targets(
            (tokens.window_N[picked] - first).tolist(),
            tokens.advantages_W[first:last].tolist(),
            tokens.logprobs_N[picked],
            sampler_logprobs_N=tokens.sampler_logprobs_N[picked],
        )

    whole, parts = objective(windows(0, 4)), [objective(windows(*cut)) for cut in ((0, 1), (1, 3), (3, 4), (4, 4))]
    assert sum(p.loss_sum for p in parts).item() == pytest.approx(whole.loss_sum.item(), rel=1e-5)
    assert sum(p.weight for p in parts).item() == whole.weight.item()


@pytest.mark.parametrize("objective", [Klong(kl_coefficient=0.1), Klong(aggregation="window_mean"), Sft()])
@pytest.mark.parametrize("advantages", [[], [1.0]])
def test_no_targets_give_a_zero_that_can_be_differentiated(objective, advantages):
    tokens = targets([], advantages)
    result = objective(tokens)
    result.loss_sum.backward()
    assert (result.loss_sum.item(), result.weight.item(), tokens.logprobs_N.grad.shape) == (0.0, 0, (0,))


def test_sft_is_the_negative_log_likelihood_of_targets(tokens):
    result = build_objective("sft")(tokens)
    assert result.loss_sum.item() == pytest.approx(-tokens.logprobs_N.sum().item(), rel=1e-6)
    assert result.weight.item() == 15


def test_a_missing_reference_is_refused(tokens):
    with pytest.raises(ValueError, match="kl_coefficient=0.1 needs reference"):
        Klong(kl_coefficient=0.1)(replace(tokens, reference_logprobs_N=None))


def test_an_objective_is_found_by_name_or_import_path():
    assert build_objective("klong", {"clip_high": 0.28}) == Klong(clip_high=0.28)
    assert build_objective("klong_rl.objectives.klong.Klong") == Klong()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kong", {}, "'kong' can't be imported"),
        ("klong_rl.objectives.klong.Kong", {}, "can't be imported"),
        ("klong", {"clip": 0.2}, "doesn't take the options"),
        ("klong", {"aggregation": "mean"}, "aggregation 'mean' is not one of"),
        ("klong", {"clip_low": 2.0}, "clip_low=2.0"),
    ],
)
def test_a_wrong_objective_is_a_user_error(name, options, message):
    with pytest.raises(UserError, match=message):
        build_objective(name, options)
