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
    def needs(self) -> frozenset[str]:
        return frozenset({"reference"} if self.kl_coefficient else ())

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult:
        """Raises ValueError if a reference is needed and `reference_logprobs_N` is absent."""
        advantages_N = tokens.advantages_W[tokens.window_N]
        log_ratio_N = tokens.logprobs_N - tokens.sampler_logprobs_N
        ratio_N = log_ratio_N.exp()
        clipped_N = ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_N = -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
        sums = {
            "ratio_mean": ratio_N.sum().detach(),
            "clip_fraction": (clipped_N * advantages_N < ratio_N * advantages_N).sum(),
            "kl_sampler_k3": (ratio_N - 1 - log_ratio_N).sum().detach(),
        }
        if self.kl_coefficient:
            if tokens.reference_logprobs_N is None:
                raise ValueError(f"kl_coefficient={self.kl_coefficient} needs reference log-probs, and there are none")
            to_reference_N = tokens.reference_logprobs_N - tokens.logprobs_N
            kl_N = to_reference_N.exp() - to_reference_N - 1
            loss_N = loss_N + self.kl_coefficient * kl_N
            sums["kl_reference_k3"] = kl_N.sum().detach()
        return ObjectiveResult(*self._aggregate(loss_N, tokens), sums)

    def _aggregate(self, loss_N: torch.Tensor, tokens: TargetTokens) -> tuple[torch.Tensor, torch.Tensor]:
        targets_W = torch.bincount(tokens.window_N, minlength=len(tokens.advantages_W))
        if self.aggregation == "token_mean":
            return loss_N.sum(), targets_W.sum()
        return (loss_N / targets_W[tokens.window_N]).sum(), (targets_W > 0).sum()
