"""The configuration of the learner, a part of klong_rl.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LayoutConfig:
    """Sizes of the parallel dimensions of one learner group."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    data: int = 2


@dataclass
class OptimizerConfig:
    """AdamW; a linear warm-up of the learning rate, then `decay`."""

    lr: float = 3e-4
    warmup_steps: int = 0
    decay: str = "constant"  # or linear, or cosine: from lr to min_lr
    decay_steps: int = 0  # the step at which it is min_lr, and from then on
    min_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_grad: float = 1.0  # of the global norm


@dataclass
class LearnerConfig:
    """One Megatron-core learner group."""

    layout: LayoutConfig = field(default_factory=LayoutConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: str = "klong"  # a name in klong_rl.objectives.recipes, or an import path (docs/objectives.md)
    objective_options: dict[str, Any] = field(default_factory=dict)
    advantage: str = ""  # a name in klong_rl.advantages, or an import path; empty: the one of the objective's recipe
    device: str = "cpu"  # or "cuda"
    dtype: str = "float32"
    gpu_memory: float = 0.9  # of a GPU's memory, at most
    token_budget: int = 4096  # tokens of one micro-batch, padding included
    recompute: float = 0.0  # share of the layers whose activations are computed again in the backward pass; 1: all
    num_threads: int = 1  # CPU threads of one rank
    num_cpus: float = 0.25  # of Ray's accounting, one rank
    num_gpus: float = 0.0
    checkpoint_every: int = 4  # steps; a stage's last step always has one
    keep_checkpoints: int = 2
    keep_logprobs: bool = True  # the learner's, of every token trained, in RUN/logprobs (docs/dashboard.md)
    async_checkpoints: bool = True  # written beside the steps that follow, by a fork of each rank
