"""The configuration: every setting with its default and unit. YAML under conf/ holds only differences.

Hydra composes `conf/config.yaml` over this schema, so a mistyped key or a wrong type is refused before anything starts;
`klong_rl.config_check` refuses values that can't work. What a user may swap (task family, model source, reward,
objective, demonstrator) is named by import path in a `_target_` and built by `hydra.utils.instantiate`. Imports no
torch, ray, vllm, megatron or docker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from klong_rl.learner_config import LearnerConfig


@dataclass
class ModelConfig:
    """`source` builds the base checkpoint's Hugging Face folder (klong_rl.models); `name` is for people."""

    name: str = "nano"
    source: dict[str, Any] = field(default_factory=dict)


@dataclass
class ColdStartConfig:
    """SFT on scripted demonstrations before RL; cached by content. `steps: 0` starts from the base checkpoint."""

    steps: int = 0
    windows_per_step: int = 16
    lr: float = 1e-3
    warmup_steps: int = 20
    demonstrator: dict[str, Any] = field(default_factory=dict)


@dataclass
class WindowConfig:
    """The context rule (klong_rl.windows), in tokens."""

    max_tokens: int = 128
    overlap_tokens: int = 24


@dataclass
class RulesConfig:
    """When `submit` is taken (klong_rl.scaffold). 0: always."""

    submit_after: float = 0.0  # share of the episode's time that must be used
    read_first: float = 0.0  # share of the lines of what the task asks to read that must have been shown


@dataclass
class AgentEndpointConfig:
    """Where agents from outside ask the policy: each rollout actor serves its own (docs/agents.md)."""

    host: str = "127.0.0.1"  # that it listens on
    port: int = 0  # 0: any that is free
    advertise: str = ""  # name or address that programs are told; empty: host
    tool_parser: str = "hermes"  # of vLLM's, for the model's own format of tool calls
    grace_s: float = 10.0  # for a program to end by itself once its episode is at a limit


@dataclass
class AgentConfig:
    """The agent loop (actors.agent), or with `program` one from outside (actors.program), named by import path."""

    system: str = ""
    action_tokens: int = 16  # most tokens of one action
    observation_tokens: int = 48  # a longer observation is cut in the middle
    command_timeout_s: float = 5.0
    temperature: float = 1.0
    max_attempts: int = 3  # of one episode, infrastructure failures included
    rules: RulesConfig = field(default_factory=RulesConfig)
    program: dict[str, Any] = field(default_factory=dict)
    endpoint: AgentEndpointConfig = field(default_factory=AgentEndpointConfig)


@dataclass
class EngineConfig:
    """vLLM. `extra` is passed to AsyncEngineArgs as it is."""

    dtype: str = "float32"
    max_model_len: int = 256
    max_num_seqs: int = 64
    enforce_eager: bool = True
    # Or "ipc": CUDA IPC, learner and engine on one GPU; or "network": NCCL between GPUs, gloo between CPUs.
    weight_transfer: str = "klong_shared_memory"
    transfer_timeout_s: float = 60.0  # of "network": for one version to one engine, and for the making of their group
    tensor_parallel: int = 1  # GPUs of one engine
    kv_cache_gib: int = 1  # on a CPU
    gpu_memory: float = 0.9  # of a GPU's memory, all in all
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class ActorsConfig:
    """Rollout actors: each holds an engine, and runs as many episodes at once as klong_rl.pacing decides, within these
    bounds.
    """

    count: int = 1
    min_episodes: int = 1
    episodes: int = 32  # at most
    num_cpus: float = 0.5  # of Ray's accounting
    num_gpus: float = 0.0


@dataclass
class EndpointConfig:
    """A model to ask: the judge of a run, a teacher, an evaluator (docs/judging.md). Bounds are the whole run's."""

    url: str = ""  # up to and with /v1; scripted://models for the scripted models (klong_rl.scripted)
    protocol: str = "openai"  # or anthropic
    model: str = ""
    key_env: str = ""  # environment variable that holds the API key; none: no key is sent
    requests_per_s: float = 10.0
    concurrent: int = 16  # requests under way
    request_timeout_s: float = 120.0
    context_tokens: int = 32768  # of a request and its reply
    reply_tokens: int = 1024
    temperature: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)  # of the request's body, as it is; null: that isn't sent
    usd_per_mtok_in: float = 0.0  # dollars for a million tokens, to tell what was spent
    usd_per_mtok_out: float = 0.0


@dataclass
class JudgeConfig:
    """Judging (docs/judging.md): deadlines of one grading, the judge model, and what is kept of a verdict."""

    count: int = 1
    episodes: int = 8  # judged at once by one actor
    grading_timeout_s: float = 60.0  # the waiting for the judge model not counted
    wait_s: float = 600.0  # for the judge model, in one grading: its queue and its troubles included
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    signing_key_file: str = ""  # of the verdicts' records; none: the environment variable KLONG_SIGNING_KEY
    keep_snapshots: bool = False  # of what was graded in a fresh container, for klong_rl.rejudge: a Docker image each
    num_cpus: float = 0.1


@dataclass
class EgressConfig:
    """The way out for tasks that ask for a network (docs/sandboxes.md)."""

    image: str = "klong-net"  # has python3: `make image-net`
    via: str = "bridge"  # the Docker network that leads out
    ranges: list[str] = field(default_factory=list)  # such as 10.1.0.0/16: reachable though not public
    dns: list[str] = field(default_factory=list)  # name servers; none: those of the Docker host


@dataclass
class SandboxConfig:
    """`kind` is "docker" or "process" (no isolation: for hosts without Docker). Limits are the task's."""

    kind: str = "docker"
    allow_unisolated: bool = False  # "process" is refused without it
    image: str = "klong-sandbox"
    runtime: str = ""  # "runsc" for gVisor; empty: Docker's default
    setup_timeout_s: float = 120.0
    snapshot_gb: float = 100.0  # 10^9 bytes, of the run's snapshots on one host; 0: no bound
    snapshot_every_s: float = 600.0  # of an episode under way, to go on from where its sandbox is lost; 0: never
    hosts: list[str] = field(default_factory=list)  # unix://, tcp:// or ssh:// of Docker daemons; none: DOCKER_HOST
    per_host: int = 0  # sandboxes on one host at most, those of other runs included; 0: no bound
    warm: int = 16  # sandboxes that each rollout actor keeps made ahead on each host; 0: none
    egress: EgressConfig = field(default_factory=EgressConfig)


@dataclass
class BufferConfig:
    """Redis (docs/buffer.md). Without `url` a private server runs on a Unix socket in the run directory."""

    url: str = ""
    deadline_s: float = 30.0  # for one call: a restart of Redis or a fail-over included
    memory_mb: int = 4096  # of Redis for this run: from 0.8 of it on, new episodes wait until training has freed some
    fsync: str = "everysec"  # of the private server: "always" makes each transition durable before it is answered


@dataclass
class StageConfig:
    """One rung of the curriculum."""

    difficulty: int = 1  # of held-out tasks, and of training tasks where there is no mix
    mix: dict[int, float] = field(default_factory=dict)  # share of training tasks by difficulty; any sum
    timeout_s: float = 60.0  # active seconds of an episode
    max_turns: int = 8
    steps: int = 8  # learner steps; with promotion.rule=adaptive the most


@dataclass
class PromotionConfig:
    """When a stage ends (klong_rl.curriculum). `window` and `min_steps` in learner steps."""

    rule: str = "steps"  # or adaptive
    min_steps: int = 16
    window: int = 16
    cut_share: float = 0.5  # of episodes cut by the stage's limits
    plateau_gain: float = 0.05  # of reward, over another window
    confidence: float = 0.9
    demote_below: float = 0.0  # mean reward; 0: never
    running: str = "finish"  # episodes that run at a promotion, under their own limits; or extend, to the new ones


@dataclass
class CurriculumConfig:
    """The ladder, first rung first."""

    stages: list[StageConfig] = field(default_factory=list)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)


@dataclass
class CloseEarlyConfig:
    """Groups that don't wait for their last episodes (klong_rl.closing, docs/curriculum.md)."""

    members: int = 0  # verdicts that a group must have; 0: it waits for all
    patience: float = 3.0  # times the median time of those that came in: so long the others must have run
    late: str = "join"  # they are trained when they come; or drop


@dataclass
class RolloutConfig:
    """How much is sampled for one learner step, and how far sampling may run ahead."""

    groups_per_step: int = 4
    group_size: int = 8
    max_staleness: int = 1  # versions; bounds how far sampling runs ahead, too
    cut_episodes: str = "score"  # those that a limit of their stage cut: trained as they scored; or mask, or exclude
    close_early: CloseEarlyConfig = field(default_factory=CloseEarlyConfig)
    step_timeout_s: float = 1800.0  # waiting for enough finished groups
    recorded: str = ""  # train on the episodes of this archive folder, RUN/archive, and sample none


@dataclass
class EvalConfig:
    episodes: int = 32  # held-out tasks, one episode each


@dataclass
class MonitorConfig:
    """Who is told the numbers of the run beside metrics.jsonl and TensorBoard (docs/operations.md)."""

    prometheus_port: int = 0  # of the endpoint; 0: none
    prometheus_host: str = "127.0.0.1"  # that it listens on; no one asks who reads there
    sinks: list[dict[str, Any]] = field(default_factory=list)  # klong_rl.monitor.sinks, each by its `_target_`


@dataclass
class RunConfig:
    """A whole run. `root/name` is the run directory."""

    name: str = "${model.name}-seed${seed}"
    root: str = "runs"
    cache: str = ".cache"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    dashboard: bool = False  # serve the run's page while it is up (docs/dashboard.md)
    ray_address: str = ""  # of an existing Ray cluster; empty: a local one
    min_free_disk_mb: int = 2048
