"""From the losses of tokens to that of a step. A sequence is a window: the target tokens of one context.

    token_mean    sum over tokens / tokens                    each token counts the same (KLong, DAPO)
    window_mean   sum over windows of their means / windows   each window does, whatever its length (GRPO, GSPO)
    window_sum    sum over tokens / length_scale / windows    as token_mean, but undivided by lengths: a step with long
                                                              windows is a larger one (Dr. GRPO, RLOO)

Windows without a target don't count; masked tokens do, so that masking makes no other token weigh more.
"""

from __future__ import annotations

import torch

from klong_rl.objectives import TargetTokens

AGGREGATIONS = ("token_mean", "window_mean", "window_sum")


def aggregate(
    loss_N: torch.Tensor, tokens: TargetTokens, aggregation: str, length_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss_sum, weight) as ObjectiveResult has them."""
    targets_W = _targets(tokens)
    if aggregation == "token_mean":
        return loss_N.sum(), targets_W.sum()
    windows = (targets_W > 0).sum()
    if aggregation == "window_mean":
        return (loss_N / targets_W[tokens.window_N]).sum(), windows
    return loss_N.sum() / length_scale, windows


def window_means(values_N: torch.Tensor, tokens: TargetTokens) -> torch.Tensor:
    """The mean over each window's targets, [W]; 0 for a window that has none. Differentiable."""
    targets_W = _targets(tokens)
    sums_W = values_N.new_zeros(len(targets_W)).index_add(0, tokens.window_N, values_N)
    return sums_W / targets_W.clamp(min=1)


def count(values_N: torch.Tensor, n_values: int, counted_N: torch.Tensor | None = None) -> torch.Tensor:
    """How often each of 0 .. n_values - 1 comes, int64, among those that are `counted_N` (bool; None: all).

    As bincount, without making the host wait for the device.
    """
    ones_N = torch.ones_like(values_N) if counted_N is None else counted_N.to(values_N.dtype)
    return values_N.new_zeros(n_values).index_add_(0, values_N, ones_N)


def _targets(tokens: TargetTokens) -> torch.Tensor:
    """Target tokens of each window, int64 [W]."""
    return count(tokens.window_N, len(tokens.advantages_W))
