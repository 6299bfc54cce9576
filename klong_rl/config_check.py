"""The checks of a configuration that hold whatever the machine: each refusal is one line with key, value and remedy."""

from __future__ import annotations

import inspect
import ipaddress
import pkgutil
import re
from typing import TYPE_CHECKING, Any

from klong_rl.advantages import advantage_rule
from klong_rl.buffer.url import parse as parse_url
from klong_rl.closing import LATE
from klong_rl.config import (
    BufferConfig,
    CloseEarlyConfig,
    EndpointConfig,
    JudgeConfig,
    MonitorConfig,
    PromotionConfig,
    RulesConfig,
    RunConfig,
    SandboxConfig,
)
from klong_rl.errors import UserError
from klong_rl.groups import CUT_RULES
from klong_rl.judging.protocols import PROTOCOLS
from klong_rl.learner_check import check_gpu_share, check_learner

if TYPE_CHECKING:
    from klong_rl.fine_tuning.config import SftConfig

# In the reward's configuration, or in a part of it: it needs an endpoint.
ASK_A_MODEL = ("klong_rl.rewards.rubric.", "klong_rl.rewards.paperbench.")


def check(config: RunConfig) -> None:
    """Raise UserError for a value that can't work."""
    check_name(config.name)
    if config.agent.temperature <= 0:
        raise UserError(f"agent.temperature={config.agent.temperature} must be above 0: what is sampled is trained")
    check_rules(config.agent.rules)
    _check_counts(config)
    _check_program(config)
    _check_buffer(config.buffer)
    _check_monitor(config.monitor)
    check_judge(config.judge, config.reward)
    check_sandbox(config.sandbox)
    _check_stages(config)
    check_window(config)
    advantage_rule(config.learner)
    _check_devices(config)


def check_rules(rules: RulesConfig) -> None:
    """Of the scaffold."""
    for name, share in (("submit_after", rules.submit_after), ("read_first", rules.read_first)):
        if not 0 <= share <= 1:
            raise UserError(f"agent.rules.{name}={share:g} is a share; use 0 to 1")


def check_name(name: str) -> None:
    """Of a run."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UserError(f"name={name!r} names a folder, containers and keys: use letters, digits, '.', '_', '-'")


def check_at_least(*bounds: tuple[str, int, int]) -> None:
    """(key, value, least value) each."""
    for name, value, least in bounds:
        if value < least:
            raise UserError(f"{name}={value} is too small; use {least} or more")


def _check_counts(config: RunConfig) -> None:
    check_at_least(
        ("actors.count", config.actors.count, 1),
        ("actors.min_episodes", config.actors.min_episodes, 1),
        ("actors.episodes", config.actors.episodes, config.actors.min_episodes),
        ("engine.tensor_parallel", config.engine.tensor_parallel, 1),
        ("judge.count", config.judge.count, 1),
        ("judge.episodes", config.judge.episodes, 1),
        ("rollout.groups_per_step", config.rollout.groups_per_step, 1),
        ("rollout.group_size", config.rollout.group_size, 2),
        ("rollout.max_staleness", config.rollout.max_staleness, 0),
        ("evaluation.episodes", config.evaluation.episodes, 1),
        ("agent.action_tokens", config.agent.action_tokens, 1),
        ("agent.max_attempts", config.agent.max_attempts, 1),
        ("learner.checkpoint_every", config.learner.checkpoint_every, 1),
        ("learner.keep_checkpoints", config.learner.keep_checkpoints, 1),
        ("cold_start.steps", config.cold_start.steps, 0),
        ("sandbox.warm", config.sandbox.warm, 0),
        ("sandbox.per_host", config.sandbox.per_host, 0),
        ("buffer.memory_mb", config.buffer.memory_mb, 16),
        ("number of curriculum.stages", len(config.curriculum.stages), 1),
    )


def _check_program(config: RunConfig) -> None:
    program, endpoint = config.agent.program, config.agent.endpoint
    if not program:
        return
    target = program.get("_target_")
    if not isinstance(target, str):
        raise UserError("agent.program needs the import path of a function: agent.program._target_=my_agent.run")
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # whatever a module of the user's raises as it is imported
        raise UserError(
            f"agent.program._target_={target} can't be imported ({type(error).__name__}: {error}); put its folder on "
            "PYTHONPATH"
        ) from error
    if not inspect.iscoroutinefunction(found):
        raise UserError(f"agent.program._target_={target} is no async function of (episode, sandbox, base_url, key)")
    if config.agent.rules != RulesConfig():
        raise UserError("agent.rules holds for the built-in agent's `submit` alone; leave it out beside agent.program")
    if endpoint.port and config.actors.count > 1:
        raise UserError(
            f"agent.endpoint.port={endpoint.port} is one port for actors.count={config.actors.count} actors, which may "
            "be on one machine; use 0, any that is free"
        )
    if endpoint.grace_s < 0:
        raise UserError(f"agent.endpoint.grace_s={endpoint.grace_s:g} is below 0 seconds")


def _check_monitor(monitor: MonitorConfig) -> None:
    if not 0 <= monitor.prometheus_port <= 65535:
        raise UserError(f"monitor.prometheus_port={monitor.prometheus_port} is no port; use 1 to 65535, or 0 for none")
    for sink in monitor.sinks:
        if "_target_" not in sink:
            raise UserError(f"monitor.sinks: {sink} has no _target_; use _target_: klong_rl.monitor.sinks.WandbSink")


def _check_buffer(buffer: BufferConfig) -> None:
    if buffer.fsync not in ("everysec", "always"):
        raise UserError(f"buffer.fsync={buffer.fsync} is unknown; use everysec or always")
    if buffer.deadline_s <= 0:
        raise UserError(f"buffer.deadline_s={buffer.deadline_s:g} must be above 0 seconds")
    if buffer.url:
        try:
            parse_url(buffer.url)
        except ValueError as error:
            raise UserError(str(error)) from error


def check_judge(judge: JudgeConfig, reward: dict[str, Any]) -> None:
    endpoint = judge.endpoint
    if any(name in str(reward) for name in ASK_A_MODEL) and not (endpoint.url and endpoint.model):
        raise UserError(
            "the reward asks a judge model, and judge.endpoint.url or judge.endpoint.model is empty; set both, "
            "for example judge.endpoint.url=http://127.0.0.1:8000/v1 judge.endpoint.model=NAME"
        )
    check_endpoint(endpoint, "judge.endpoint")
    check_above_0(("judge.grading_timeout_s", judge.grading_timeout_s), ("judge.wait_s", judge.wait_s))
    if endpoint.concurrent < judge.count:
        raise UserError(
            f"judge.endpoint.concurrent={endpoint.concurrent} is shared by judge.count={judge.count} judges; "
            "use one for each at least"
        )


def check_endpoint(endpoint: EndpointConfig, key: str) -> None:
    """`key` is the setting that it comes from. An empty url is for whoever asks to refuse."""
    if endpoint.url and not re.match(r"(https?|scripted)://[^/]", endpoint.url):
        raise UserError(f"{key}.url={endpoint.url} is no address; use http://HOST:PORT/v1 or https://HOST/v1")
    if re.match(r"https?://(/|$)", endpoint.url):
        raise UserError(f"{key}.url={endpoint.url} names no host; use http://HOST:PORT/v1 or https://HOST/v1")
    if endpoint.protocol not in PROTOCOLS:
        raise UserError(f"{key}.protocol={endpoint.protocol} is unknown; use one of {', '.join(PROTOCOLS)}")
    check_above_0(
        (f"{key}.requests_per_s", endpoint.requests_per_s),
        (f"{key}.request_timeout_s", endpoint.request_timeout_s),
        (f"{key}.reply_tokens", endpoint.reply_tokens),
        (f"{key}.concurrent", endpoint.concurrent),
    )
    if endpoint.context_tokens < 4 * endpoint.reply_tokens:
        raise UserError(
            f"{key}.context_tokens={endpoint.context_tokens} leaves too little beside reply_tokens="
            f"{endpoint.reply_tokens}; use four times as many at least"
        )


def check_above_0(*values: tuple[str, float]) -> None:
    """(key, value) each."""
    for name, value in values:
        if value <= 0:
            raise UserError(f"{name}={value:g} must be above 0")


def check_sandbox(sandbox: SandboxConfig) -> None:
    if sandbox.kind not in ("docker", "process"):
        raise UserError(f"sandbox.kind={sandbox.kind} is unknown; use docker or process")
    if sandbox.kind == "process" and not sandbox.allow_unisolated:
        raise UserError(
            "sandbox.kind=process runs a model's commands as you, with your files and your network; use docker, or set "
            "sandbox.allow_unisolated=true"
        )
    if sandbox.snapshot_gb < 0:
        raise UserError(f"sandbox.snapshot_gb={sandbox.snapshot_gb:g} is below 0; 0 sets no bound")
    for each in sandbox.egress.ranges:
        try:
            ipaddress.ip_network(each)
        except ValueError as error:
            raise UserError(f"sandbox.egress.ranges: {error}; write it as in 10.1.0.0/16") from error


def _check_promotion(promotion: PromotionConfig) -> None:
    where = "curriculum.promotion"
    if promotion.rule not in ("steps", "adaptive"):
        raise UserError(f"{where}.rule={promotion.rule} is unknown; use steps or adaptive")
    if promotion.running not in ("finish", "extend"):
        raise UserError(f"{where}.running={promotion.running} is unknown; use finish or extend")
    if promotion.window < 3 or promotion.min_steps < promotion.window:
        raise UserError(
            f"{where}.window={promotion.window} must be at least 3 and at most min_steps={promotion.min_steps}: a "
            "stage is judged on its own steps"
        )
    if not 0 < promotion.cut_share <= 1:
        raise UserError(f"{where}.cut_share={promotion.cut_share:g} is a share of the episodes; use above 0 to 1")
    if not 0.5 <= promotion.confidence < 1:
        raise UserError(f"{where}.confidence={promotion.confidence:g} must be from 0.5 to below 1; 0.9, for example")


def _check_stages(config: RunConfig) -> None:
    for number, stage in enumerate(config.curriculum.stages, 1):
        for name, value in (("timeout_s", stage.timeout_s), ("max_turns", stage.max_turns), ("steps", stage.steps)):
            if value <= 0:
                raise UserError(f"curriculum stage {number}: {name}={value} must be positive")
        if any(share < 0 for share in stage.mix.values()) or (stage.mix and sum(stage.mix.values()) <= 0):
            raise UserError(f"curriculum stage {number}: mix={dict(stage.mix)} needs shares from 0, one above 0")
    _check_promotion(config.curriculum.promotion)
    if config.rollout.cut_episodes not in CUT_RULES:
        raise UserError(f"rollout.cut_episodes={config.rollout.cut_episodes} is unknown; use one of {CUT_RULES}")
    _check_close_early(config.rollout.close_early, config.rollout.group_size)
    steps = sum(stage.steps for stage in config.curriculum.stages)
    if config.rollout.recorded and config.rollout.max_staleness < steps:
        raise UserError(
            f"rollout.recorded plays back what other weights sampled, and rollout.max_staleness="
            f"{config.rollout.max_staleness} would drop it; set that to {steps} or more, the steps of the curriculum"
        )


def _check_close_early(rule: CloseEarlyConfig, group_size: int) -> None:
    where = "rollout.close_early"
    if rule.members and not 2 <= rule.members < group_size:
        raise UserError(
            f"{where}.members={rule.members} must be from 2 to below rollout.group_size={group_size}: a baseline needs "
            "two; 0 has a group wait for all"
        )
    if rule.patience < 1:
        raise UserError(f"{where}.patience={rule.patience:g} is below 1: half of those that came in took longer")
    if rule.late not in LATE:
        raise UserError(f"{where}.late={rule.late} is unknown; use one of {LATE}")


def check_window(config: RunConfig | SftConfig) -> None:
    """The context rule must leave room for a turn, and a window must fit wherever it goes."""
    longest = config.window.max_tokens
    if longest > config.engine.max_model_len:
        raise UserError(
            f"window.max_tokens={longest} is over engine.max_model_len={config.engine.max_model_len}; lower the first "
            "or raise the second"
        )
    if longest > config.learner.token_budget:
        raise UserError(
            f"window.max_tokens={longest} is over learner.token_budget={config.learner.token_budget}; raise the second"
        )
    turn = config.agent.action_tokens + config.agent.observation_tokens
    if config.window.overlap_tokens + turn >= longest:
        raise UserError(
            f"window.overlap_tokens={config.window.overlap_tokens} and one turn of up to {turn} tokens don't fit in "
            f"window.max_tokens={longest}"
        )


def _check_devices(config: RunConfig) -> None:
    check_learner(config.learner)
    transfer, device = config.engine.weight_transfer, config.learner.device
    if transfer not in ("klong_shared_memory", "ipc", "network"):
        raise UserError(f"engine.weight_transfer={transfer} is unknown; use klong_shared_memory, ipc or network")
    if config.engine.transfer_timeout_s <= 0:
        raise UserError(f"engine.transfer_timeout_s={config.engine.transfer_timeout_s:g} must be above 0 seconds")
    if transfer == "ipc" and device != "cuda":
        raise UserError(f"engine.weight_transfer=ipc shares a GPU, and learner.device={device}; use cluster=one_gpu")
    cut, gpus = config.engine.tensor_parallel, config.actors.num_gpus
    if device == "cuda" and cut > 1 and gpus != cut:
        raise UserError(
            f"engine.tensor_parallel={cut} takes as many GPUs, and actors.num_gpus={gpus:g}; use cluster=split"
        )
    layout = config.learner.layout
    ranks = layout.tensor * layout.pipeline * layout.context * layout.data
    if transfer == "ipc" and ranks > 1:
        raise UserError(
            f"engine.weight_transfer=ipc is for one GPU, and learner.layout has {ranks} ranks; use data=1, or "
            "cluster=split"
        )
    check_gpu_share("engine", config.engine.gpu_memory)
