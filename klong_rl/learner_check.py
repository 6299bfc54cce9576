"""The checks of the learner's configuration: a part of klong_rl.config_check."""

from __future__ import annotations

from klong_rl.errors import UserError
from klong_rl.learner_config import LearnerConfig, OptimizerConfig

DECAYS = ("constant", "linear", "cosine")


def check_learner(learner: LearnerConfig) -> None:
    if learner.device not in ("cpu", "cuda"):
        raise UserError(f"learner.device={learner.device} is unknown; use cpu or cuda")
    if not 0 <= learner.recompute <= 1:
        raise UserError(f"learner.recompute={learner.recompute:g} is a share of the layers: use 0 to 1")
    check_gpu_share("learner", learner.gpu_memory)
    check_optimizer(learner.optimizer)


def check_gpu_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise UserError(f"{name}.gpu_memory={share:g} is a share of a GPU: use a number above 0, at most 1")


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """The learning rate must have a way from warm-up to its end."""
    if optimizer.decay not in DECAYS:
        raise UserError(f"learner.optimizer.decay={optimizer.decay} is unknown; use one of {', '.join(DECAYS)}")
    if optimizer.decay == "constant":
        return
    if optimizer.decay_steps <= optimizer.warmup_steps:
        raise UserError(
            f"learner.optimizer.decay_steps={optimizer.decay_steps} must be above "
            f"learner.optimizer.warmup_steps={optimizer.warmup_steps}: it is the step at which the decay ends"
        )
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        raise UserError(
            f"learner.optimizer.min_lr={optimizer.min_lr:g} must be 0 to learner.optimizer.lr={optimizer.lr:g}"
        )
