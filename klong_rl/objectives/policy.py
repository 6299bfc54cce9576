"""What every policy objective shares around its formula: masks, importance weights, KL, entropy, aggregation, report.

loss = aggregate over tokens of  kept (w formula(log_ratio) + kl_coefficient k3 - entropy_coefficient H)

k3 = pi_ref / pi - 1 - log(pi_ref / pi), which estimates KL(pi || pi_ref) (as in GRPO, arXiv 2402.03300)
w  = the importance weight (importance.py), 1 without a correction
kept = 0 for tokens with a log-prob of -inf (no ratio can be had) or staler than `max_token_staleness`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from klong_rl.errors import UserError
from klong_rl.objectives import Formula, ObjectiveResult, TargetTokens, TokenLoss
from klong_rl.objectives.aggregation import AGGREGATIONS, aggregate
from klong_rl.objectives.importance import CORRECTIONS, importance_weights
from klong_rl.objectives.ratio import bounded, k3
from klong_rl.objectives.report import measure


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """A formula and the options that all of them have."""

    formula: Formula
    formula_options: Mapping[str, Any] = field(default_factory=dict)
    aggregation: str = "token_mean"  # one of AGGREGATIONS
    length_scale: float = 1.0  # tokens; what window_sum divides a window's sum by
    kl_coefficient: float = 0.0  # of KL to the weights that RL began with
    entropy_coefficient: float = 0.0
    importance: str = "none"  # one of CORRECTIONS
    importance_low: float = 0.5  # of the weight, masked only
    importance_high: float = 2.0  # of the weight, masked and truncated
    max_token_staleness: int | None = None  # versions; None: the lease's bound on windows alone

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("importance", self.importance, CORRECTIONS),
        ):
            if value not in allowed:
                raise UserError(f"{name}={value!r} is not one of {allowed}")
        if self.length_scale <= 0:
            raise UserError(f"length_scale={self.length_scale} must be above 0 tokens")
        if not 0 <= self.importance_low <= 1 <= self.importance_high:
            raise UserError(
                f"importance_low={self.importance_low} and importance_high={self.importance_high} must have 1 between "
                "them: it is the weight of a token of the current policy"
            )

    @property
    def needs(self) -> frozenset[str]:
        wanted = {
            "reference": self.kl_coefficient != 0,
            "proximal": self.importance != "none",
            "entropy": self.entropy_coefficient != 0,
        }
        return frozenset(name for name, needed in wanted.items() if needed)

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult:
        """Raises ValueError if something it needs is absent."""
        self._check(tokens)
        kept_N, sums = self._keep(tokens)
        tokens = _without(tokens, ~kept_N)
        loss_N, of_formula = self._surrogate(tokens, kept_N)
        loss_N = (loss_N + self._regularization(tokens)) * kept_N
        loss_sum, weight = aggregate(loss_N, tokens, self.aggregation, self.length_scale)
        return ObjectiveResult(loss_sum, weight, {**measure(tokens), **sums, **of_formula})

    def _surrogate(self, tokens: TargetTokens, kept_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The formula's loss of each token, weighted, and what is reported of it."""
        corrects = self.importance != "none"
        old_N = tokens.proximal_logprobs_N if corrects else tokens.sampler_logprobs_N
        answer = self.formula(tokens, bounded(tokens.logprobs_N - old_N), **self.formula_options)
        if not isinstance(answer, TokenLoss):
            raise UserError(f"the formula gave {type(answer).__name__}, not a TokenLoss")
        sums = {name: value.detach().sum() for name, value in answer.values.items()}
        if answer.clipped_N is not None:
            sums["clip_fraction"] = (answer.clipped_N & kept_N).sum()
        if not corrects:
            return answer.loss_N, sums
        weights_N, changed_N = importance_weights(
            bounded(tokens.proximal_logprobs_N - tokens.sampler_logprobs_N),
            self.importance,
            self.importance_low,
            self.importance_high,
        )
        sums["importance_mean"] = weights_N.sum()
        sums["masked_importance" if self.importance == "masked" else "importance_truncated"] = changed_N.sum()
        return weights_N * answer.loss_N, sums

    def _regularization(self, tokens: TargetTokens) -> torch.Tensor:
        """KL to the reference and the entropy bonus, [N]."""
        loss_N = torch.zeros_like(tokens.logprobs_N)
        if self.kl_coefficient:
            loss_N = loss_N + self.kl_coefficient * k3(bounded(tokens.reference_logprobs_N - tokens.logprobs_N))
        if self.entropy_coefficient:
            loss_N = loss_N - self.entropy_coefficient * tokens.entropies_N
        return loss_N

    def _check(self, tokens: TargetTokens) -> None:
        given = {
            "reference": tokens.reference_logprobs_N,
            "proximal": tokens.proximal_logprobs_N,
            "entropy": tokens.entropies_N,
        }
        if missing := [name for name in sorted(self.needs) if given[name] is None]:
            raise ValueError(
                f"the objective needs {missing} of its tokens, and has none: kl_coefficient={self.kl_coefficient}, "
                f"entropy_coefficient={self.entropy_coefficient}, importance={self.importance!r}"
            )

    def _keep(self, tokens: TargetTokens) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Which tokens count, and how many do not for which reason."""
        impossible_N = torch.zeros_like(tokens.window_N, dtype=torch.bool)
        for logprobs_N in (
            tokens.logprobs_N,
            tokens.sampler_logprobs_N,
            tokens.reference_logprobs_N,
            tokens.proximal_logprobs_N,
        ):
            if logprobs_N is not None:
                impossible_N |= logprobs_N.isneginf()
        masked = {"masked_impossible": impossible_N.sum()}
        if self.max_token_staleness is None:
            return ~impossible_N, masked
        stale_N = (tokens.staleness_N > self.max_token_staleness) & ~impossible_N
        return ~(impossible_N | stale_N), masked | {"masked_stale": stale_N.sum()}


def _without(tokens: TargetTokens, masked_N: torch.Tensor) -> TargetTokens:
    """The tokens, the masked ones with log-probs of 0: ratios of 1, and no gradient."""

    def cleared(values_N: torch.Tensor | None) -> torch.Tensor | None:
        # Before anything is computed from them: a gradient of inf times a mask of 0 is nan.
        return None if values_N is None else values_N.masked_fill(masked_N, 0.0)

    return replace(
        tokens,
        logprobs_N=cleared(tokens.logprobs_N),
        sampler_logprobs_N=cleared(tokens.sampler_logprobs_N),
        reference_logprobs_N=cleared(tokens.reference_logprobs_N),
        proximal_logprobs_N=cleared(tokens.proximal_logprobs_N),
        entropies_N=cleared(tokens.entropies_N),
    )
