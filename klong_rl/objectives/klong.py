"""KLong's objective: clipped policy gradient over sub-trajectories (arXiv 2602.17547; clipping: arXiv 1707.06347).

For a window w with advantage A_w and its target tokens t, with r = exp(logprob - sampler_logprob):

    loss_t = -min(r A_w, clip(r, 1 - clip_low, 1 + clip_high) A_w) + kl_coefficient * k3(t)
    k3(t)  = exp(ref - logprob) - (ref - logprob) - 1

The ratio is against the log-probs of the *sampler*, recorded when the token was sampled, whatever version that was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from klong_rl.errors import UserError
from klong_rl.objectives import ObjectiveResult, TargetTokens

AGGREGATIONS = ("token_mean", "window_mean")


@dataclass(frozen=True)
class Klong:
    """`token_mean`: each target token counts the same. `window_mean`: each window does, whatever its length."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.0
    aggregation: str = "token_mean"

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise UserError(f"aggregation {self.aggregation!r} is not one of {AGGREGATIONS}")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise UserError(f"clip_low={self.clip_low} must be in [0, 1] and clip_high={self.clip_high} at least 0")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient != 0.0

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult:
        """Raises ValueError if a reference is needed and `reference_logprobs_BT` is absent."""
        mask_BT = tokens.mask_BT
        advantages_B1 = tokens.advantages_B[:, None]
        # Masked before exp: what stands on padding must not become inf, whose product with 0 is nan.
        log_ratio_BT = (tokens.logprobs_BT - tokens.sampler_logprobs_BT) * mask_BT
        ratio_BT = log_ratio_BT.exp()
        clipped_BT = ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_BT = -torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
        sums = {
            "ratio_mean": (ratio_BT * mask_BT).sum().detach(),
            "clip_fraction": ((clipped_BT * advantages_B1 < ratio_BT * advantages_B1) * mask_BT).sum().detach(),
            "kl_sampler_k3": ((ratio_BT - 1 - log_ratio_BT) * mask_BT).sum().detach(),
        }
        if self.needs_reference:
            if tokens.reference_logprobs_BT is None:
                raise ValueError(f"kl_coefficient={self.kl_coefficient} needs reference log-probs, and there are none")
            to_reference_BT = (tokens.reference_logprobs_BT - tokens.logprobs_BT) * mask_BT
            kl_BT = to_reference_BT.exp() - to_reference_BT - 1
            loss_BT = loss_BT + self.kl_coefficient * kl_BT
            sums["kl_reference_k3"] = (kl_BT * mask_BT).sum().detach()
        return ObjectiveResult(*self._aggregate(loss_BT * mask_BT, mask_BT), sums)

    def _aggregate(self, loss_BT: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        targets_B = mask_BT.sum(1)
        if self.aggregation == "token_mean":
            return loss_BT.sum(), targets_B.sum()
        return (loss_BT.sum(1) / targets_B.clamp(min=1)).sum(), (targets_B > 0).sum()
