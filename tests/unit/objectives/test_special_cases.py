"""What is at the edge of every objective: closed forms or a clear error, never NaN."""

import math
from dataclasses import replace

import pytest
import torch

from klong_rl.objectives import TargetTokens, build_objective
from klong_rl.objectives.ratio import LOG_RATIO_MAX
from klong_rl.objectives.recipes import RECIPES
from klong_rl.objectives.report import summarize
from tests.unit.objectives.tokens import N_TOKENS, target_tokens

POLICY = sorted(RECIPES.keys() - {"sft"})
# With everything on that could divide by zero or overflow.
EVERYTHING = {"kl_coefficient": 0.1, "entropy_coefficient": 0.01, "importance": "truncated"}
LOGPROBS = ("logprobs_N", "sampler_logprobs_N", "reference_logprobs_N", "proximal_logprobs_N")


def gradient(objective, tokens):
    """The result and the gradient of its sum."""
    result = objective(tokens)
    result.loss_sum.backward()
    return result, tokens.logprobs_N.grad


def floats(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_at_a_ratio_of_one_it_is_the_policy_gradient(name, options):
    """Every weight is 1, every KL 0: on policy all objectives are REINFORCE, up to how tokens are averaged."""
    objective = build_objective(name, options)
    tokens = target_tokens((2, 2), (1.0, -3.0), **dict.fromkeys(LOGPROBS, floats(-0.5, -1.0, -2.0, -0.1)))
    result, grad = gradient(objective, tokens)
    assert result.weight.item() == {"token_mean": 4, "window_mean": 2, "window_sum": 2}[objective.aggregation]
    share = 0.5 if objective.aggregation == "window_mean" else 1.0
    torch.testing.assert_close(grad, share * floats(-1.0, -1.0, 3.0, 3.0))
    metrics = summarize({key: value.detach().numpy() for key, value in result.sums.items()}, 4)
    assert metrics["ess_fraction"] == pytest.approx(1.0)
    assert metrics["ratio_p01"] == metrics["ratio_p50"] == metrics["ratio_p99"] == 1.0
    assert metrics["kl_sampler_k3"] == metrics["kl_reference_k1"] == metrics.get("clip_fraction", 0.0) == 0.0


@pytest.mark.parametrize("name", POLICY)
def test_advantages_of_zero_teach_nothing(name):
    """As in a group of one, or of equal scores."""
    result, grad = gradient(build_objective(name, {"kl_coefficient": 0.0}), target_tokens((5, 2), (0.0, 0.0)))
    assert result.loss_sum.item() == 0.0
    assert (grad == 0).all()


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_no_targets_give_a_zero_that_can_be_differentiated(name, lengths):
    result, grad = gradient(build_objective(name), target_tokens(lengths, (1.0,) * len(lengths)))
    assert (result.loss_sum.item(), result.weight.item(), grad.shape) == (0.0, 0, (0,))
    assert all(value.sum() == 0 for value in result.sums.values())


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.parametrize("which", LOGPROBS)
def test_a_token_that_a_policy_holds_impossible_is_masked_and_counted(name, which):
    """A log-prob of -inf: its gradient is 0, and the other tokens' are as if it weren't there (but for GSPO's mean)."""
    tokens = target_tokens()
    values = getattr(tokens, which).detach().clone()
    values[[0, 6]] = -math.inf
    result, grad = gradient(build_objective(name, EVERYTHING), target_tokens(**{which: values}))
    assert torch.isfinite(result.loss_sum) and torch.isfinite(grad).all()
    assert (grad[[0, 6]] == 0).all()
    assert result.sums["masked_impossible"].item() == 2
    if name != "gspo":
        _, whole = gradient(build_objective(name, EVERYTHING), tokens)
        rest = [n for n in range(N_TOKENS) if n not in (0, 6)]
        torch.testing.assert_close(grad[rest], whole[rest])


@pytest.mark.parametrize("name", POLICY)
def test_all_tokens_masked_give_zero(name):
    tokens = target_tokens(sampler_logprobs_N=torch.full((N_TOKENS,), -math.inf, dtype=torch.float64))
    result, grad = gradient(build_objective(name, EVERYTHING), tokens)
    assert result.loss_sum.item() == 0.0 and result.weight.item() > 0
    assert (grad == 0).all()
    assert result.sums["masked_impossible"].item() == N_TOKENS


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", LOGPROBS)
def test_extreme_ratios_are_finite(name, dtype, far):
    values = dict.fromkeys(LOGPROBS, -0.1) | {far: -1e30}
    arrays = {key: torch.full((4,), value, dtype=dtype) for key, value in values.items()}
    tokens = target_tokens((1, 1, 1, 1), (1.0, -1.0, 0.0, 1e4), **arrays)
    result, grad = gradient(build_objective(name, EVERYTHING), tokens)
    assert torch.isfinite(result.loss_sum) and torch.isfinite(grad).all()
    assert all(torch.isfinite(value).all() for value in result.sums.values())


def test_the_clipped_surrogate_at_extreme_ratios():
    """A > 0 stops at the clip as it should; A < 0, which has no bound in the formula, is taken at e^20."""
    up = target_tokens((1, 1), (1.0, -1.0), logprobs_N=floats(-0.1, -0.1), sampler_logprobs_N=floats(-900, -900))
    result, grad = gradient(build_objective("klong"), up)
    assert result.loss_sum.item() == pytest.approx(-1.2 + math.exp(LOG_RATIO_MAX))
    assert grad.tolist() == [0.0, 0.0]
    assert result.sums["ratio_extreme"].item() == 2
    down = target_tokens((1, 1), (1.0, -1.0), logprobs_N=floats(-900, -900), sampler_logprobs_N=floats(-0.1, -0.1))
    result, grad = gradient(build_objective("klong"), down)
    assert result.loss_sum.item() == pytest.approx(0.8, abs=1e-8)
    assert grad.tolist() == [0.0, 0.0]


def test_tokens_over_the_staleness_limit_are_masked_and_counted():
    tokens = target_tokens()
    stale = tokens.staleness_N > 1
    assert 0 < stale.sum() < N_TOKENS
    result, grad = gradient(build_objective("klong", {"max_token_staleness": 1}), tokens)
    unlimited, whole = gradient(build_objective("klong"), target_tokens())
    torch.testing.assert_close(grad, torch.where(stale, 0.0, whole))
    assert result.sums["masked_stale"].item() == stale.sum().item()
    assert result.weight.item() == unlimited.weight.item(), "masking makes no other token weigh more"


def test_of_fresh_tokens_the_limit_takes_none():
    tokens = target_tokens(staleness_N=torch.zeros(N_TOKENS, dtype=torch.int64))
    _, limited = gradient(build_objective("klong", {"max_token_staleness": 0}), tokens)
    _, whole = gradient(build_objective("klong"), target_tokens())
    torch.testing.assert_close(limited, whole)


@pytest.mark.parametrize("name", [*POLICY, "sft"])
def test_sums_add_up_however_the_windows_are_cut(name):
    tokens = target_tokens()

    def windows(first, last):
        picked = (tokens.window_N >= first) & (tokens.window_N < last)
        names = [n for n in TargetTokens.__dataclass_fields__ if n.endswith("_N") and n != "window_N"]
        return TargetTokens(
            window_N=tokens.window_N[picked] - first,
            advantages_W=tokens.advantages_W[first:last],
            **{name: getattr(tokens, name)[picked] for name in names},
        )

    objective = build_objective(name)
    whole, parts = objective(tokens), [objective(windows(*cut)) for cut in ((0, 1), (1, 4), (4, 5), (5, 5))]
    assert sum(part.loss_sum for part in parts).item() == pytest.approx(whole.loss_sum.item())
    assert sum(part.weight for part in parts).item() == whole.weight.item()
    for key, total in whole.sums.items():
        torch.testing.assert_close(sum(part.sums[key] for part in parts), total)


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"kl_coefficient": 0.1}, "reference_logprobs_N"),
        ({"importance": "full"}, "proximal_logprobs_N"),
        ({"entropy_coefficient": 0.1}, "entropies_N"),
    ],
)
def test_what_is_needed_and_absent_is_an_error(options, absent):
    objective = build_objective("klong", options)
    (need,) = objective.needs
    with pytest.raises(ValueError, match=f"needs .'{need}'"):
        objective(replace(target_tokens(), **{absent: None}))
    assert build_objective("klong").needs == frozenset()
