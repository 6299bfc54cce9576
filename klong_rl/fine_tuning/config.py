"""The settings of `python -m klong_rl.sft`. Those it shares with the main job mean the same there and here."""

from __future__ import annotations

from dataclasses import dataclass, field

from klong_rl.config import AgentConfig, ColdStartConfig, EngineConfig, LearnerConfig, ModelConfig, WindowConfig
from klong_rl.config_check import check_at_least, check_name, check_window
from klong_rl.errors import UserError
from klong_rl.learner_check import check_learner


@dataclass
class SftConfig:
    """One fine-tuning. `root/name` is the run directory."""

    data: str = ""  # a file, a folder or a pattern: JSONL, Parquet, or the archive of a run
    held_out: str = ""  # the same, for the evaluation loss; empty: a share of `data`, trained never
    held_out_share: float = 0.02  # of the trajectories, by their ids
    held_out_tokens: int = 65536  # of the windows evaluated, at most
    min_score: float | None = None  # leave out trajectories that scored less: rejection sampling
    shuffle_windows: int = 1024  # windows that are shuffled together, hence in memory together
    epochs: int = 1
    steps: int = 0  # at most; 0: until the epochs are over
    tokens_per_step: int = 2048  # windows are taken for a step until the next one would exceed it
    evaluate_every: int = 50  # steps; the end is evaluated always
    name: str = "sft-${model.name}-seed${seed}"
    root: str = "runs"
    cache: str = ".cache"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    # The next two stand in a model's file: `cold_start` gives the learning rate, `engine` the longest window it serves.
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ray_address: str = ""  # of an existing Ray cluster; empty: a local one
    min_free_disk_mb: int = 2048


# What a fine-tuning that goes on must share with what it goes on from. The data is known by its files instead.
MATTERS = (
    "seed",
    "model",
    "held_out",
    "held_out_share",
    "min_score",
    "shuffle_windows",
    "tokens_per_step",
    "window",
    "agent.system",
    "agent.action_tokens",
    "agent.observation_tokens",
    "learner.optimizer",
)


def check(config: SftConfig) -> None:
    """Raise UserError, one line, for a value that can't work whatever the machine."""
    if not config.data:
        raise UserError("data= is missing: name a JSONL or Parquet file, a folder of them, or the archive of a run")
    check_at_least(
        ("shuffle_windows", config.shuffle_windows, 1),
        ("epochs", config.epochs, 1),
        ("steps", config.steps, 0),
        ("evaluate_every", config.evaluate_every, 1),
        ("held_out_tokens", config.held_out_tokens, 1),
        ("agent.action_tokens", config.agent.action_tokens, 1),
        ("learner.checkpoint_every", config.learner.checkpoint_every, 1),
        ("learner.keep_checkpoints", config.learner.keep_checkpoints, 1),
    )
    check_name(config.name)
    check_window(config)
    check_learner(config.learner)
    if not 0 <= config.held_out_share < 1:
        raise UserError(f"held_out_share={config.held_out_share:g} is a share of the trajectories; use 0 to below 1")
    if config.tokens_per_step < config.window.max_tokens:
        raise UserError(
            f"tokens_per_step={config.tokens_per_step} is under window.max_tokens={config.window.max_tokens}; "
            "a step takes whole windows, so raise the first"
        )
