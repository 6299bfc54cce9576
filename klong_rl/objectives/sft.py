"""Supervised fine-tuning: the mean negative log-likelihood of the target tokens."""

from __future__ import annotations

from dataclasses import dataclass

from klong_rl.objectives import ObjectiveResult, TargetTokens


@dataclass(frozen=True)
class Sft:
    """Each target token counts the same; advantages and sampler log-probs are not looked at."""

    needs_reference = False

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult:
        nll = -(tokens.logprobs_BT * tokens.mask_BT).sum()
        return ObjectiveResult(nll, tokens.mask_BT.sum(), {})
