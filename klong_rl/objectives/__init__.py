"""Objectives: pure tensor functions from the log-probs of target tokens to a loss.

An objective is any callable `TargetTokens -> ObjectiveResult`, named in the config by a shipped name (`klong`, `sft`)
or by import path (`package.module.Class`). It returns *sums*: the learner divides the gradient once, by the sum of
`weight` over all micro-batches and all data-parallel ranks of a step. So a step's update doesn't depend on how its
windows are cut into micro-batches or spread over ranks.

Nothing here imports torch until an objective is built.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from klong_rl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SHIPPED = {"klong": "klong_rl.objectives.klong.Klong", "sft": "klong_rl.objectives.sft.Sft"}


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
class ObjectiveResult:
    """`loss_sum` is differentiable; the loss of a step is sum(loss_sum) / sum(weight) over the whole step.

    `weight` is a whole number (target tokens, or windows). `sums` holds detached sums over target tokens: each is
    reported as its mean over the target tokens of the step.
    """

    loss_sum: Tensor
    weight: Tensor
    sums: Mapping[str, Tensor]


NEEDS = frozenset({"reference", "proximal", "entropy"})


class Objective(Protocol):
    """`needs`: which of NEEDS must be computed for it; the field of TargetTokens is None otherwise."""

    needs: frozenset[str]

    def __call__(self, tokens: TargetTokens) -> ObjectiveResult: ...


def build_objective(name: str, options: Mapping[str, Any] | None = None) -> Objective:
    """The objective called `name` (shipped, or `package.module.Class`) with its options; UserError if there is none."""
    try:
        factory = pkgutil.resolve_name(SHIPPED.get(name, name))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"objective {name!r} can't be imported ({error}); use one of {sorted(SHIPPED)} or 'package.module.Class'"
        ) from error
    try:
        return factory(**(options or {}))
    except TypeError as error:
        raise UserError(f"objective {name!r} doesn't take the options {dict(options or {})}: {error}") from error
