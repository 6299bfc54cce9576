"""Ratios of probabilities, kept within what floats hold."""

from __future__ import annotations

import torch

from klong_rl.errors import UserError

# A ratio beyond e^20 = 5e8 is no estimate of anything, and e^89 is inf in float32, whose product with 0 is nan. What is
# clamped gets no gradient through the ratio, and is reported as `ratio_extreme`.
LOG_RATIO_MAX = 20.0


def bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    """Clamped to +-LOG_RATIO_MAX."""
    return log_ratio.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r >= 0: its mean over samples of p, with r = q / p, estimates KL(p || q) (Schulman's k3, 2020)."""
    return log_ratio.expm1() - log_ratio  # near 0, exp() - 1 has no digits left in float32


def clip_bounds(clip_low: float, clip_high: float) -> tuple[float, float]:
    """(1 - clip_low, 1 + clip_high). UserError for a range that leaves no ratio of 1 or reaches below 0."""
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise UserError(f"clip_low={clip_low} must be in [0, 1] and clip_high={clip_high} at least 0")
    return 1 - clip_low, 1 + clip_high
