"""Importance weights for tokens that another policy sampled: older weights, or an engine that computes otherwise.

With w = pi_proximal / pi_sampler, where the proximal policy has the learner's weights at the start of the step:

    full        w                        decoupled PPO (AReaL, arXiv 2505.24298)
    truncated   min(w, high)             truncated importance sampling (Ionides 2008; V-trace, arXiv 1802.01561)
    masked      w if low <= w <= high    masked importance sampling (IcePop, in Ring-1T, arXiv 2510.18855)
                0 otherwise

The weight multiplies a token's loss, and the formula's own ratio is then against the proximal policy; without a
correction it is against the sampler. Weights are constants: no gradient flows through them.
"""

from __future__ import annotations

import torch

CORRECTIONS = ("none", "full", "truncated", "masked")


def importance_weights(
    log_weight_N: torch.Tensor, correction: str, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, whether a bound changed them), both [N]; `log_weight_N` is log pi_proximal - log pi_sampler."""
    full_N = log_weight_N.detach().exp()
    if correction == "full":
        return full_N, torch.zeros_like(full_N, dtype=torch.bool)
    if correction == "truncated":
        return full_N.clamp(max=high), full_N > high
    outside_N = (full_N < low) | (full_N > high)
    return full_N.masked_fill(outside_N, 0.0), outside_N
