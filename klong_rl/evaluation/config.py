"""The settings of `python -m klong_rl.evaluate`. Those it shares with the main job mean the same there and here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from klong_rl.config import AgentConfig, ColdStartConfig, EngineConfig, JudgeConfig, SandboxConfig, WindowConfig
from klong_rl.config_check import check_at_least, check_judge, check_rules, check_sandbox
from klong_rl.distillation.config import TeacherConfig, check_teacher
from klong_rl.errors import UserError

KINDS = ("checkpoint", "endpoint", "scripted")
# Of a run whose checkpoint is evaluated: the scaffold it was trained in, and what its engine was started with.
OF_THE_RUN = ("agent", "window", "engine")
# What decides what is sampled and how it is scored: a later run in the same folder must share it.
MATTERS = (
    "seed",
    "suite",
    "tasks",
    "reward",
    "policy.kind",
    "policy.path",
    "policy.endpoint.url",
    "policy.endpoint.model",
    "policy.endpoint.temperature",
    "judge.endpoint.model",
    "agent.system",
    "agent.action_tokens",
    "agent.observation_tokens",
    "agent.command_timeout_s",
    "agent.temperature",
    "agent.rules",
    "window",
    "timeout_s",
    "max_turns",
)


@dataclass
class PolicyConfig(TeacherConfig):
    """Who is evaluated. `kind`: checkpoint (served by our own engine), endpoint, or scripted (a demonstrator)."""

    path: str = ""  # of a checkpoint: a Hugging Face folder, or a run directory for its newest one


@dataclass
class EvaluateConfig:
    """One evaluation."""

    out: str = ""  # a folder: episodes, results, page; a later run goes on there
    suite: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    check: bool = False  # say which tasks can be used and which are refused, and run none
    only: list[str] = field(default_factory=list)  # ids of tasks, `*` for any text; none: all
    repeats: int = 1  # episodes of each task
    timeout_s: float = 0.0  # active seconds of an episode; 0: what the task says, or an hour
    max_turns: int = 200
    at_once: int = 8
    confidence: float = 0.95  # of the intervals
    seed: int = 0
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)  # its demonstrator, for policy=scripted


def check(config: EvaluateConfig) -> None:
    """Raise UserError, one line, for a value that can't work whatever the machine."""
    policy = config.policy
    if not config.out:
        raise UserError("out= is missing: name a folder for the episodes and the results")
    check_teacher(policy, "policy", KINDS, instead="policy=checkpoint policy.path=DIR")
    if policy.kind == "checkpoint" and not policy.path:
        raise UserError("policy.path= is missing: name a run directory or the Hugging Face folder of a checkpoint")
    if config.agent.program:
        raise UserError(
            "agent.program: an agent of your own isn't evaluated here yet; leave it out to evaluate the model in the "
            "built-in scaffold"
        )
    if config.agent.temperature < 0:
        raise UserError(f"agent.temperature={config.agent.temperature:g} is below 0; 0 takes the likeliest token")
    if not 0.5 <= config.confidence < 1:
        raise UserError(f"confidence={config.confidence:g} must be from 0.5 to below 1; 0.95, for example")
    if not config.check:
        check_judge(config.judge, config.reward)
    check_sandbox(config.sandbox)
    check_rules(config.agent.rules)
    check_at_least(
        ("repeats", config.repeats, 1),
        ("max_turns", config.max_turns, 1),
        ("at_once", config.at_once, 1),
        ("agent.observation_tokens", config.agent.observation_tokens, 1),
        ("timeout_s", config.timeout_s, 0),
    )


def take_settings(config: EvaluateConfig, run: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """Set what `run`, a run's own configuration, has under OF_THE_RUN, but for what `overrides` set here."""
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for name in OF_THE_RUN:
        _take(getattr(config, name), run.get(name, {}), name, given)


def _take(node: Any, values: Mapping[str, Any], prefix: str, given: set[str]) -> None:
    for each in fields(node):
        key = f"{prefix}.{each.name}"
        if each.name not in values or key in given:
            continue
        child = getattr(node, each.name)
        if is_dataclass(child):
            _take(child, values[each.name], key, given)
        else:
            setattr(node, each.name, values[each.name])
