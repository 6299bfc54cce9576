"""Objectives: pure tensor functions from the log-probs of target tokens to a loss.

    learner.objective=NAME ──▶ recipes.py: which formula, with which defaults
    formula (clipped.py, gspo.py, cispo.py, reinforce.py, yours): a loss for each token
    policy.py: importance weights, masks, KL, entropy bonus, aggregation and the report, shared by all formulas

A formula is a function `(tokens: TargetTokens, log_ratio_N, **options) -> TokenLoss`, shipped or your own. An objective
returns *sums*: the learner divides the gradient once, by the sum of `weight` over all micro-batches and all
data-parallel ranks of a step. So an update doesn't depend on how its windows are cut into micro-batches or spread over
ranks.

Nothing here imports torch until an objective is built.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from klong_rl.errors import UserError
from klong_rl.objectives.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TargetTokens:
    """What an objective sees of one micro-batch: its N target tokens, in any order, and its W windows.

    Every window is whole: all its target tokens are here. There is no padding and hence no mask; N and W may be 0.
    `logprobs_N` and `entropies_N` carry gradients, all else is constant. Log-probs are float32 (or float64) at the
    sampler's temperature. What is None was not in the objective's `needs`.
    """

    logprobs_N: Tensor  # under the weights that are trained
    sampler_logprobs_N: Tensor  # as recorded when the token was sampled, whatever version that was
    window_N: Tensor  # int64, which of the W windows the token is of
    advantages_W: Tensor
    staleness_N: Tensor  # int64, policy versions between the one that sampled the token and the learner's
    reference_logprobs_N: Tensor | None = None  # "reference": under the weights that RL began with
    proximal_logprobs_N: Tensor | None = None  # "proximal": under the weights at the start of the step
    entropies_N: Tensor | None = None  # "entropy": of the policy where the token was sampled, nats


@dataclass(frozen=True)
class TokenLoss:
    """What a formula answers: the loss of each token, differentiable, to be minimised.

    `clipped_N` (bool) tells which ones a clip changed. `values` are numbers of the formula's own, [N] each: their means
    over the target tokens are reported.
    """

    loss_N: Tensor
    clipped_N: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ObjectiveResult:
    """`loss_sum` is differentiable; the loss of a step is sum(loss_sum) / sum(weight) over the whole step.

    `weight` is a whole number (target tokens, or windows). `sums` holds detached sums over target tokens, scalars or
    vectors: klong_rl.objectives.report turns their totals over a step into metrics.
    """

    loss_sum: Tensor
    weight: Tensor
    sums: Mapping[str, Tensor]


NEEDS = frozenset({"reference", "proximal", "entropy"})

Formula = Callable[..., TokenLoss]


class Objective(Protocol):
    """`needs`: which of NEEDS must be computed for it; the field of TargetTokens is None otherwise."""

    needs: frozenset[str]

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult: ...


def build_objective(name: str, options: Mapping[str, Any] | None = None) -> Objective:
    """The objective of that name (klong_rl.objectives.recipes) or import path, with its options.

    What is named is a formula, or a class that is an Objective itself and takes all options. UserError for a name that
    leads nowhere and for options that it doesn't take or that can't work: it is tried once, on no tokens.
    """
    chosen = recipe(name)
    options = {**chosen.defaults, **(options or {})}
    try:
        named = pkgutil.resolve_name(chosen.path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"objective {name!r} can't be imported ({error}); use one of {sorted(RECIPES)} or 'package.module.function'"
        ) from error
    try:
        objective = named(**options) if inspect.isclass(named) else _around(named, options)
        objective(_no_tokens())
    except UserError as error:
        raise UserError(f"objective {name!r}: {error}") from error
    except Exception as error:  # whatever a user's own function may raise
        raise UserError(
            f"objective {name!r} with the options {options} fails when tried on a micro-batch without target tokens, "
            f"which a rank may get: {type(error).__name__}: {error}"
        ) from error
    return objective


def _around(formula: Formula, options: Mapping[str, Any]) -> Objective:
    """The formula with its own options, in a PolicyObjective with the others."""
    from klong_rl.objectives.policy import PolicyObjective

    shared = {f.name for f in fields(PolicyObjective)} - {"formula", "formula_options"}
    own = set(list(inspect.signature(formula).parameters)[2:])
    if unknown := options.keys() - shared - own:
        raise UserError(f"there is no option {sorted(unknown)}; its own are {sorted(own)}, shared {sorted(shared)}")
    return PolicyObjective(
        formula=formula,
        formula_options={key: value for key, value in options.items() if key in own},
        **{key: value for key, value in options.items() if key not in own},
    )


def _no_tokens() -> TargetTokens:
    import torch

    floats, ints = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    return TargetTokens(
        logprobs_N=floats,
        sampler_logprobs_N=floats,
        window_N=ints,
        advantages_W=floats,
        staleness_N=ints,
        reference_logprobs_N=floats,
        proximal_logprobs_N=floats,
        entropies_N=floats,
    )
