"""Group sequence policy optimization (GSPO, arXiv 2507.18071): the ratio is of a sequence, and so is the clip.

For a window w of |w| target tokens, with the geometric mean of its tokens' ratios pi / pi_old

    s_w = exp(1/|w| sum_t log r_t)
    loss_t = -min(s_w A, clip(s_w, 1 - clip_low, 1 + clip_high) A)    the same for each token of w

so that `window_mean`, which is the paper's aggregation, gives the mean over windows of min(s_w A, clip(s_w) A).
The sequence is the window: the tokens of one context. The default range is the paper's.
"""

from __future__ import annotations

import torch

from klong_rl.objectives import TargetTokens, TokenLoss
from klong_rl.objectives.aggregation import window_means
from klong_rl.objectives.ratio import clip_bounds


def gspo(
    tokens: TargetTokens, log_ratio_N: torch.Tensor, *, clip_low: float = 3e-4, clip_high: float = 4e-4
) -> TokenLoss:
    ratio_W = window_means(log_ratio_N, tokens).exp()
    free_W = ratio_W * tokens.advantages_W
    bound_W = ratio_W.clamp(*clip_bounds(clip_low, clip_high)) * tokens.advantages_W
    loss_W, clipped_W = -torch.minimum(free_W, bound_W), bound_W < free_W
    return TokenLoss(loss_W[tokens.window_N], clipped_N=clipped_W[tokens.window_N])
