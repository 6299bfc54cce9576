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


@dataclass(frozen=True)
class TargetTokens:
    """What an objective sees of one micro-batch; position t of a row speaks of the token at t + 1.

    `logprobs_BT` carries the gradient; everything else is constant. All are float32, `mask_BT` is 1.0 on targets.
    """

    logprobs_BT: Tensor
    sampler_logprobs_BT: Tensor
    mask_BT: Tensor
    advantages_B: Tensor
    reference_logprobs_BT: Tensor | None = None


@dataclass(frozen=True)
class ObjectiveResult:
    """`loss_sum` is differentiable; the loss of a step is sum(loss_sum) / sum(weight) over the whole step.

    `weight` is a whole number (target tokens, or windows). `sums` holds detached sums over target tokens: each is
    reported as its mean over the target tokens of the step.
    """

    loss_sum: Tensor
    weight: Tensor
    sums: Mapping[str, Tensor]


class Objective(Protocol):
    """`needs_reference`: whether `reference_logprobs_BT` must be computed for it."""

    needs_reference: bool

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
