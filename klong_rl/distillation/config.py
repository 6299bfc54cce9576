"""The settings of `python -m klong_rl.distill`. Those it shares with the main job mean the same there and here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from klong_rl.config import AgentConfig, ColdStartConfig, EndpointConfig, JudgeConfig, SandboxConfig
from klong_rl.config_check import check_above_0, check_at_least, check_endpoint, check_judge, check_rules, check_sandbox
from klong_rl.errors import UserError


@dataclass
class TeacherConfig:
    """`kind` is endpoint, or scripted: the task family's demonstrator (`cold_start.demonstrator`)."""

    kind: str = "scripted"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    wait_s: float = 1800.0  # for one answer, the endpoint's troubles included
    asked_again: int = 2  # times, after a refusal


@dataclass
class DistillConfig:
    """One distillation."""

    out: str = ""  # a folder: attempts, scores, trajectories; a later run goes on there
    tasks: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    difficulty: int = 1
    count: int = 0  # of training tasks; 0: all of a family that has an end
    samples: int = 1  # attempts at each task
    keep: int = 1  # of them, the best
    min_score: float = 0.5  # of what is kept
    enough: float = 1.0  # once `keep` attempts scored so much, no more begin
    timeout_s: float = 3600.0  # active seconds of an attempt
    max_turns: int = 200
    at_once: int = 8
    policy: str = ""  # folder of the model that will learn: observations are cut by its tokens; empty: by characters
    seed: int = 0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)


def check(config: DistillConfig) -> None:
    """Raise UserError, one line, for a value that can't work whatever the machine."""
    teacher = config.teacher
    if not config.out:
        raise UserError("out= is missing: name a folder for the attempts and the trajectories")
    check_teacher(teacher, "teacher", ("scripted", "endpoint"), instead="teacher=scripted")
    check_judge(config.judge, config.reward)
    check_sandbox(config.sandbox)
    check_rules(config.agent.rules)
    check_at_least(
        ("count", config.count, 0),
        ("samples", config.samples, 1),
        ("keep", config.keep, 1),
        ("max_turns", config.max_turns, 1),
        ("at_once", config.at_once, 1),
        ("agent.observation_tokens", config.agent.observation_tokens, 1),
    )
    check_above_0(("timeout_s", config.timeout_s))


def check_teacher(teacher: TeacherConfig, key: str, kinds: tuple[str, ...], instead: str) -> None:
    """Of the settings under `key`. `instead`: what works without an endpoint."""
    if teacher.kind not in kinds:
        raise UserError(f"{key}.kind={teacher.kind} is unknown; use one of {', '.join(kinds)}")
    if teacher.kind == "endpoint" and not (teacher.endpoint.url and teacher.endpoint.model):
        raise UserError(
            f"the {key} is an endpoint, and {key}.endpoint.url or {key}.endpoint.model is empty; set both, or use "
            f"{instead}"
        )
    check_endpoint(teacher.endpoint, f"{key}.endpoint")
    check_at_least((f"{key}.asked_again", teacher.asked_again, 0))
    check_above_0((f"{key}.wait_s", teacher.wait_s))
