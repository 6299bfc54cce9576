"""Clipped importance-sampling weights (CISPO, MiniMax-M1, arXiv 2506.13585): no token is left out.

With r = pi / pi_old and sg the stop of gradients:

    loss_t = -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi(t)

The paper sets no lower bound (`clip_low` = 1) and doesn't give its upper one; a weight of at most 5 is one of those
that ScaleRL (arXiv 2510.13786) found to be equally good.
"""

from __future__ import annotations

import torch

from klong_rl.objectives import TargetTokens, TokenLoss
from klong_rl.objectives.ratio import clip_bounds


def cispo(
    tokens: TargetTokens, log_ratio_N: torch.Tensor, *, clip_low: float = 1.0, clip_high: float = 4.0
) -> TokenLoss:
    ratio_N = log_ratio_N.detach().exp()
    weight_N = ratio_N.clamp(*clip_bounds(clip_low, clip_high))
    loss_N = -weight_N * tokens.advantages_W[tokens.window_N] * tokens.logprobs_N
    # Here a clip makes a gradient smaller or larger; it takes none away.
    return TokenLoss(loss_N, clipped_N=weight_N != ratio_N)
