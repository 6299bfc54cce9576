"""Each objective against its paper's formula in plain loops, written for this test: value and gradient to 1e-6.

A formula here is a function of the log-probs, in lists [window][token], to the loss that is minimised. Its gradient is
taken by central differences; what the paper stops gradients through is a constant, `now`. `c` has the other columns.
"""

import math

import pytest
import torch

from klong_rl.objectives import build_objective
from tests.unit.objectives.tokens import ADVANTAGES, columns, target_tokens


def clip(x, low, high):
    return min(max(x, low), high)


def surrogate(ratio, advantage, low=0.2, high=0.2):
    return min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)


def tokens_in(windows):
    return sum(len(window) for window in windows)


def windows_in(windows):
    """A window without target tokens is no output of the policy."""
    return sum(1 for window in windows if window)


def with_kl(lp, c, beta, share):
    """Of each token the clipped surrogate less beta times k3, times the share that its window's length gives it."""
    total = 0.0
    for w, a in enumerate(ADVANTAGES):
        for t, p in enumerate(lp[w]):
            ratio = math.exp(p) / math.exp(c["sampler_logprobs"][w][t])
            to_reference = math.exp(c["reference_logprobs"][w][t]) / math.exp(p)
            total += share(len(lp[w])) * (surrogate(ratio, a) - beta * (to_reference - math.log(to_reference) - 1))
    return total


def klong(lp, c, now):
    """2602.17547: the mean over tokens of the surrogate, less beta KL to the reference; beta = 0.1."""
    return -with_kl(lp, c, 0.1, lambda length: 1) / tokens_in(lp)


def grpo(lp, c, now):
    """2402.03300, eq. 3 and 4: 1/G sum_i 1/|o_i| sum_t (surrogate - beta k3); beta = 0.04."""
    return -with_kl(lp, c, 0.04, lambda length: 1 / length) / windows_in(lp)


def dr_grpo(lp, c, now):
    """2503.20783: 1/G sum_i sum_t surrogate, over a constant, here 8."""
    return -with_kl(lp, c, 0.0, lambda length: 1 / 8) / windows_in(lp)


def dapo(lp, c, now):
    """2503.14476, eq. 8: 1 / sum_i |o_i| sum_i sum_t surrogate, clipped to [1 - 0.2, 1 + 0.28]."""
    total = 0.0
    for w, a in enumerate(ADVANTAGES):
        for t, p in enumerate(lp[w]):
            total += surrogate(math.exp(p - c["sampler_logprobs"][w][t]), a, 0.2, 0.28)
    return -total / tokens_in(lp)


def rloo(lp, c, now):
    """2402.14740: 1/k sum_i A_i log pi(y_i)."""
    return -sum(a * sum(lp[w]) for w, a in enumerate(ADVANTAGES)) / windows_in(lp)


def gspo(lp, c, now):
    """2507.18071, eq. 5 to 7: s_i = (pi(y_i) / pi_old(y_i))^(1/|y_i|); 1/G sum_i min(s_i A_i, clip(s_i) A_i)."""
    total = 0.0
    for w, a in enumerate(ADVANTAGES):
        if lp[w]:
            sequence = math.exp((sum(lp[w]) - sum(c["sampler_logprobs"][w])) / len(lp[w]))
            total += surrogate(sequence, a, 0.1, 0.2)
    return -total / windows_in(lp)


def cispo(lp, c, now):
    """2506.13585, eq. 4 and 5: 1 / sum |o_i| sum sg(clip(r)) A log pi, clipped to [1 - 0.6, 1 + 0.5]."""
    total = 0.0
    for w, a in enumerate(ADVANTAGES):
        for t, p in enumerate(lp[w]):
            total += clip(math.exp(now[w][t] - c["sampler_logprobs"][w][t]), 0.4, 1.5) * a * p
    return -total / tokens_in(lp)


def decoupled(lp, c, weight, share):
    """Of each token weight(pi_proximal / pi_sampler) min(u A, clip(u) A), with u = pi / pi_proximal."""
    total = 0.0
    for w, a in enumerate(ADVANTAGES):
        for t, p in enumerate(lp[w]):
            proximal = c["proximal_logprobs"][w][t]
            factor = weight(math.exp(proximal - c["sampler_logprobs"][w][t]))
            total += share(len(lp[w])) * factor * surrogate(math.exp(p - proximal), a)
    return total


def decoupled_ppo(lp, c, now):
    """2505.24298, eq. 5, mean over tokens."""
    return -decoupled(lp, c, lambda weight: weight, lambda length: 1) / tokens_in(lp)


def truncated_klong(lp, c, now):
    """Weights of at most 1.3."""
    return -decoupled(lp, c, lambda weight: min(weight, 1.3), lambda length: 1) / tokens_in(lp)


def masked_grpo(lp, c, now):
    """Weights outside [0.6, 1.4] are 0; mean over windows of the means over all their tokens (2510.18855)."""
    kept = lambda weight: weight if 0.6 <= weight <= 1.4 else 0.0  # noqa: E731
    return -decoupled(lp, c, kept, lambda length: 1 / length) / windows_in(lp)


def truncated_gspo(lp, c, now):
    """The sequence ratio against the proximal policy; each token's share of it weighted by at most 1.3."""
    total = 0.0
    for w, a in enumerate(ADVANTAGES):
        for t in range(len(lp[w])):
            sequence = math.exp((sum(lp[w]) - sum(c["proximal_logprobs"][w])) / len(lp[w]))
            weight = min(math.exp(c["proximal_logprobs"][w][t] - c["sampler_logprobs"][w][t]), 1.3)
            total += weight * surrogate(sequence, a, 3e-4, 4e-4) / len(lp[w])
    return -total / windows_in(lp)


MASKED = {"importance": "masked", "importance_low": 0.6, "importance_high": 1.4, "kl_coefficient": 0}
TRUNCATED = {"importance": "truncated", "importance_high": 1.3}
CASES = {
    klong: ("klong", {"kl_coefficient": 0.1}),
    grpo: ("grpo", {}),
    dr_grpo: ("dr_grpo", {"length_scale": 8}),
    dapo: ("dapo", {}),
    rloo: ("rloo", {}),
    gspo: ("gspo", {"clip_low": 0.1, "clip_high": 0.2}),
    cispo: ("cispo", {"clip_low": 0.6, "clip_high": 0.5}),
    decoupled_ppo: ("decoupled_ppo", {}),
    truncated_klong: ("klong", TRUNCATED),
    masked_grpo: ("grpo", MASKED),
    truncated_gspo: ("gspo", TRUNCATED),
}


def central_differences(loss, lp, step=1e-6):
    gradient = []
    for w, window in enumerate(lp):
        for t in range(len(window)):
            values = []
            for sign in (1, -1):
                moved = [list(other) for other in lp]
                moved[w][t] += sign * step
                values.append(loss(moved))
            gradient.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(gradient, dtype=torch.float64)


@pytest.mark.parametrize("paper", CASES, ids=lambda paper: paper.__name__)
def test_value_and_gradient_are_those_of_the_paper(paper):
    name, options = CASES[paper]
    tokens = target_tokens()
    result = build_objective(name, options)(tokens)
    (result.loss_sum / result.weight).backward()
    c = columns(tokens)
    now = c["logprobs"]
    assert (result.loss_sum / result.weight).item() == pytest.approx(paper(now, c, now), abs=1e-6, rel=1e-6)
    wanted = central_differences(lambda lp: paper(lp, c, now), now)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(tokens.logprobs_N.grad, wanted, atol=1e-6, rtol=1e-6)


def test_the_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    with_bonus, without = target_tokens(), target_tokens()
    result = build_objective("klong", {"entropy_coefficient": 0.01})(with_bonus)
    (result.loss_sum / result.weight).backward()
    plain = build_objective("klong")(without)
    lower = (plain.loss_sum - result.loss_sum).item() / result.weight.item()
    entropies = with_bonus.entropies_N
    assert lower == pytest.approx(0.01 * entropies.mean().item(), abs=1e-12)
    torch.testing.assert_close(entropies.grad, torch.full_like(entropies, -0.01 / len(entropies)))


def test_sft_is_the_negative_log_likelihood():
    tokens = target_tokens()
    result = build_objective("sft")(tokens)
    result.loss_sum.backward()
    assert result.loss_sum.item() == pytest.approx(-sum(map(sum, columns(tokens)["logprobs"])))
    assert result.weight.item() == len(tokens.logprobs_N)
    assert (tokens.logprobs_N.grad == -1).all()
