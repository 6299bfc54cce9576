"""The objectives against formulas written out token by token, and their independence of how a batch is cut."""

import math

import pytest
import torch

from klong_rl.errors import UserError
from klong_rl.objectives import TargetTokens, build_objective
from klong_rl.objectives.klong import Klong


@pytest.fixture
def tokens():
    """Four windows of 7 positions: targets in all but the last, ratios on both sides of the clip, both signs."""
    torch.manual_seed(0)
    mask = (torch.rand(4, 7) < 0.6).float()
    mask[3] = 0
    return TargetTokens(
        logprobs_BT=(-torch.rand(4, 7) * 2).requires_grad_(),
        sampler_logprobs_BT=-torch.rand(4, 7) * 2 * mask,
        mask_BT=mask,
        advantages_B=torch.tensor([1.5, -0.7, 0.0, 2.0]),
        reference_logprobs_BT=-torch.rand(4, 7) * 2,
    )


def by_hand(tokens, low, high, beta, window_mean):
    """KLong's loss and gradient in plain Python: min(r A, clip(r) A) less beta k3, token by token."""
    loss, weight, gradient = 0.0, 0, torch.zeros_like(tokens.logprobs_BT)
    for b in range(4):
        targets = [t for t in range(7) if tokens.mask_BT[b, t]]
        share = 1 / len(targets) if window_mean and targets else 1.0
        weight += (1 if targets else 0) if window_mean else len(targets)
        for t in targets:
            lp, a = tokens.logprobs_BT[b, t].item(), tokens.advantages_B[b].item()
            r = math.exp(lp - tokens.sampler_logprobs_BT[b, t].item())
            clipped = min(max(r, 1 - low), 1 + high)
            to_ref = tokens.reference_logprobs_BT[b, t].item() - lp
            loss += share * (-min(r * a, clipped * a) + beta * (math.exp(to_ref) - to_ref - 1))
            slope = -r * a if r * a <= clipped * a else 0.0
            gradient[b, t] = share * (slope + beta * (1 - math.exp(to_ref)))
    return loss, weight, gradient


@pytest.mark.parametrize("aggregation", ["token_mean", "window_mean"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_klong_is_the_formula_token_by_token(tokens, aggregation, beta):
    result = Klong(clip_low=0.2, clip_high=0.3, kl_coefficient=beta, aggregation=aggregation)(tokens)
    loss, weight, gradient = by_hand(tokens, 0.2, 0.3, beta, aggregation == "window_mean")
    result.loss_sum.backward()
    assert result.loss_sum.item() == pytest.approx(loss, rel=1e-5)
    assert result.weight.item() == weight
    torch.testing.assert_close(tokens.logprobs_BT.grad, gradient, rtol=1e-4, atol=1e-6)


def test_klong_reports_clipping_ratio_and_kl_to_the_sampler(tokens):
    sums = Klong(clip_low=0.2, clip_high=0.2)(tokens).sums
    picked = tokens.mask_BT > 0
    ratio = (tokens.logprobs_BT - tokens.sampler_logprobs_BT).exp()[picked].detach()
    advantage = tokens.advantages_B[:, None].expand(4, 7)[picked]
    clipped = ((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
    assert sums["clip_fraction"].item() == clipped.sum().item() > 0
    assert sums["ratio_mean"].item() == pytest.approx(ratio.sum().item(), rel=1e-5)
    assert sums["kl_sampler_k3"].item() == pytest.approx((ratio - 1 - ratio.log()).sum().item(), rel=1e-4)


@pytest.mark.parametrize("objective", [Klong(), Klong(aggregation="window_mean"), build_objective("sft")])
def test_sums_add_up_however_the_windows_are_cut(tokens, objective):
    def rows(a, b):
        return TargetTokens(
            tokens.logprobs_BT[a:b], tokens.sampler_logprobs_BT[a:b], tokens.mask_BT[a:b], tokens.advantages_B[a:b]
        )

    whole, parts = objective(rows(0, 4)), [objective(rows(0, 1)), objective(rows(1, 4))]
    assert sum(p.loss_sum for p in parts).item() == pytest.approx(whole.loss_sum.item(), rel=1e-5)
    assert sum(p.weight for p in parts).item() == whole.weight.item()


def test_what_stands_on_padding_does_not_reach_loss_or_gradient(tokens):
    logprobs = torch.where(tokens.mask_BT > 0, tokens.logprobs_BT.detach(), 1e4).requires_grad_()
    result = Klong()(TargetTokens(logprobs, tokens.sampler_logprobs_BT, tokens.mask_BT, tokens.advantages_B))
    result.loss_sum.backward()
    assert torch.isfinite(result.loss_sum)
    assert (logprobs.grad[tokens.mask_BT == 0] == 0).all()


def test_sft_is_the_negative_log_likelihood_of_targets(tokens):
    result = build_objective("sft")(tokens)
    assert result.loss_sum.item() == pytest.approx(-tokens.logprobs_BT[tokens.mask_BT > 0].sum().item(), rel=1e-6)
    assert result.weight.item() == tokens.mask_BT.sum().item()


def test_a_missing_reference_is_refused(tokens):
    bare = TargetTokens(tokens.logprobs_BT, tokens.sampler_logprobs_BT, tokens.mask_BT, tokens.advantages_B)
    with pytest.raises(ValueError, match="kl_coefficient=0.1 needs reference"):
        Klong(kl_coefficient=0.1)(bare)


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
