"""Supervised fine-tuning: the mean negative log-likelihood of the target tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from klong_rl.objectives import ObjectiveResult, TargetTokens


@dataclass(frozen=True)
class Sft:
    """Each target token counts the same; no policy sampled them, so advantages and ratios play no part."""

    needs = frozenset()

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult:
        # A constant would be copied to the device, and the host would wait for all that runs there.
        n_targets = torch.full((), len(tokens.logprobs_N), dtype=torch.int64, device=tokens.logprobs_N.device)
        return ObjectiveResult(-tokens.logprobs_N.sum(), n_targets, {})
