"""The clipped surrogate (PPO, arXiv 1707.06347), of KLong, GRPO, Dr. GRPO, DAPO and decoupled PPO.

For a target token t of a window with advantage A, with r = pi(t) / pi_old(t):

    loss_t = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

- KLong (arXiv 2602.17547): on sub-trajectories; A = score - mean over the group's windows.
- GRPO (arXiv 2402.03300): A = (score - mean) / std over the group's episodes; mean over a window's tokens, then over
  windows; KL to the reference in the loss.
- Dr. GRPO (arXiv 2503.20783): A = score - mean; a window's tokens are summed and divided by a constant.
- DAPO (arXiv 2503.14476): clip_high above clip_low, so that unlikely tokens may grow; mean over all tokens.
- Decoupled PPO (AReaL, arXiv 2505.24298): pi_old is the proximal policy, and the loss is weighted by
  pi_proximal / pi_sampler.
"""

from __future__ import annotations

import torch

from klong_rl.objectives import TargetTokens, TokenLoss
from klong_rl.objectives.ratio import clip_bounds


def clipped(
    tokens: TargetTokens, log_ratio_N: torch.Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> TokenLoss:
    advantages_N = tokens.advantages_W[tokens.window_N]
    ratio_N = log_ratio_N.exp()
    free_N = ratio_N * advantages_N
    bound_N = ratio_N.clamp(*clip_bounds(clip_low, clip_high)) * advantages_N
    return TokenLoss(-torch.minimum(free_N, bound_N), clipped_N=bound_N < free_N)
