"""The plain policy gradient (REINFORCE, Williams 1992), which RLOO (arXiv 2402.14740) uses with its own baseline.

    loss_t = -A log pi(t)

It has no ratio, so it is right for tokens of the current policy only: with older ones set `importance` to truncated,
which makes it off-policy REINFORCE. RLOO sums a window's tokens (`window_sum`).
"""

from __future__ import annotations

import torch

from klong_rl.objectives import TargetTokens, TokenLoss


def reinforce(tokens: TargetTokens, log_ratio_N: torch.Tensor) -> TokenLoss:
    return TokenLoss(-tokens.advantages_W[tokens.window_N] * tokens.logprobs_N)
