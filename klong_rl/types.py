"""The words of klong_rl as typed records: what crosses a process boundary is one of these.

Every record is a msgspec Struct; `klong_rl.wire` encodes it. Nothing here imports ray, vllm, megatron, torch or docker.

Dimension suffixes, used in every name that holds an array:

    _P   tokens of the pinned prefix of an episode (task and tools)
    _A   tokens of one action (sampled by the model)
    _O   tokens of one observation (the environment's answer, and the opening of the next action)
    _T   tokens of one window, prefix included; of one trajectory, prefix left out
    _K   turns of one trajectory
    _R   tokens of one micro-batch: a packed row of whole windows
    _N   target tokens of one micro-batch
    _W   windows of one micro-batch (_W1: their W + 1 bounds)

Policy versions are run-length coded: `((version, count), ...)`, the counts sum to the number of action tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

VersionRuns = tuple[tuple[int, int], ...]


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts that a sandbox reaches, through an HTTP proxy (docs/sandboxes.md). What `block` names wins.

    `allow`: a name, `*.name` for all that is under it, `*` for all, at ports 80 and 443, or at `:port`.
    `block`: a name and all that is under it, a URL for its whole host, or a range of addresses.

    >>> Network(allow=("pypi.org", "files.pythonhosted.org"), block=("github.com",))
    """

    allow: tuple[str, ...] = ()
    block: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox may use. `read_only` are paths that nobody may change, whatever the rights in the image.

    Commands run as `user` in `workdir`; empty: as the image says. Root has most of the capabilities that Docker gives
    it, any other user none.
    """

    memory_mb: int = 512
    cpus: float = 1.0
    pids: int = 128
    disk_mb: int = 512
    open_files: int = 1024  # of one process
    read_only: tuple[str, ...] = ("/bin", "/etc", "/lib", "/opt", "/sbin", "/usr")
    network: Network | None = None  # none at all
    user: str = "agent"
    workdir: str = "/work"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """An instruction, an environment and how it is scored.

    `image` is a tag, or "dockerfile:" and the absolute path of a folder that is built (docs/sandboxes.md).
    `files` maps a path relative to the sandbox's working directory to its content, written before the first turn.
    `secret` is what the reward needs and the agent must not see; it never enters a sandbox or a prompt.
    `reading` are files that the agent is to read before it submits, where a rule asks for it (klong_rl.scaffold).
    `timeout_s` is what the task itself gives an episode, in active seconds, for evaluation (0: it doesn't say); in
    training the stage gives the time.

    >>> Task(id="relay/train/7", family="relay", instruction="Follow the clues.", image="klong-sandbox")
    """

    id: str
    family: str
    instruction: str
    image: str
    files: dict[str, bytes] = {}
    secret: dict[str, Any] = {}
    limits: Limits = Limits()
    reading: tuple[str, ...] = ()
    timeout_s: float = 0.0


class EpisodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a task, as admitted. `timeout_s` counts active seconds (DESIGN: time).

    >>> EpisodeSpec(id="t3-s1-g4-0", group="t3-s1-g4", group_size=8, stage=1, purpose="train",
    ...             task=task, timeout_s=20.0, max_turns=8)
    """

    id: str
    group: str
    group_size: int
    stage: int
    purpose: str  # "train" or "eval": evaluation is claimed and judged first, and never trained
    task: Task
    timeout_s: float
    max_turns: int


class Turn(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One action and the observation that answers it.

    The context it was sampled in is `prefix + turns[context_start:index]`, each turn giving its action tokens and
    then its observation tokens. The observation of a turn that ended its episode is empty.

    `chain` is a digest of that context, as the engine was given it, of the action it answered with and of the chain of
    the turn before (klong_rl.chain): who holds the turns can tell that they are what was sampled.

    An agent from outside (docs/agents.md) says itself what the model sees. A turn of its has a `prompt_T`, and was
    sampled in the context and action of turn `follows`, if any, and then `prompt_T`; nothing else is in its context.
    """

    index: int
    context_start: int
    action_A: np.ndarray  # int32, the stop token included if it was sampled
    logprobs_A: np.ndarray  # float32, at the sampling temperature
    versions: VersionRuns
    observation_O: np.ndarray  # int32, ends with the opening of the next action
    command: str = ""
    exit_code: int | None = None
    seconds: float = 0.0  # active seconds: sampling and the command
    interrupted: bool = False  # whoever ran the command died meanwhile; the observation says so
    chain: bytes = b""
    follows: int = -1  # of a turn with a prompt: the turn it goes on from; -1: from none
    prompt_T: np.ndarray | None = None  # int32: given since the action of `follows`, or from the very beginning
    masked: str = ""  # why its action is recorded and no target

    def n_tokens(self) -> int:
        """Tokens this turn takes in a later context."""
        return len(self.action_A) + len(self.observation_O)


class Trajectory(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A finished episode as SFT reads it: flat, with no record of how it was sampled.

    After the prefix, turn i is `tokens_T[starts_K[i]:starts_K[i + 1]]`: first its action, up to `ends_K[i]`, then its
    observation. The first turn starts at 0. `agent_T` is 1 on the actions.
    """

    id: str
    prefix_P: np.ndarray  # int32
    tokens_T: np.ndarray  # int32, without the prefix
    agent_T: np.ndarray  # uint8
    starts_K: np.ndarray  # int64, where each action starts
    ends_K: np.ndarray  # int64, where it ends

    def n_tokens(self) -> int:
        return len(self.prefix_P) + len(self.tokens_T)


class Segment(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is streamed: whole turns of one episode, append-only. Segment 0 carries the prefix."""

    episode: str
    epoch: int
    seq: int
    turns: tuple[Turn, ...]
    prefix_P: np.ndarray | None = None  # int32, in segment 0 and only there


ATTRIBUTED = "attributed"  # beside the reasons for which others are masked


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an episode ended. `kind` is one of OUTCOMES; what is not in TRAINED never enters a baseline.

    Of an agent from outside, also the tokens that were sampled for it: those that can be trained, and the others by
    the reason for which they are masked.
    """

    kind: str
    detail: str = ""
    attributed: int = 0
    masked: dict[str, int] = {}

    def sampled(self) -> dict[str, int]:
        """Tokens by what is to become of them; empty for the built-in agent, which masks none."""
        return {name: n for name, n in {ATTRIBUTED: self.attributed, **self.masked}.items() if n}


# submitted: the agent said so. timeout, turn_limit, context_limit: cut, judged on what it left behind.
# broken: the agent broke its own sandbox.
# infrastructure: ours to retry elsewhere. task: the task is broken, quarantined.
TRAINED = ("submitted", "timeout", "turn_limit", "context_limit", "broken")
CUT = ("timeout", "turn_limit")  # by a limit of the stage, which a later one would have put off
OUTCOMES = (*TRAINED, "infrastructure", "task")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The score of an episode in [0, 1], its breakdown, and the evidence it rests on."""

    score: float
    parts: dict[str, float] = {}
    evidence: dict[str, str] = {}


class Window(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A training sub-trajectory: the pinned prefix, then a run of turns, loss on action tokens alone.

    For RL it is the very context that was sampled. `tokens_T[i]` with `targets_T[i] == 1` is an action token whose
    log-prob under the sampler is `logprobs_T[i]` (0.0 elsewhere). `versions` runs over the targets in order.
    """

    id: str
    episode: str
    group: str
    stage: int
    tokens_T: np.ndarray  # int32
    targets_T: np.ndarray  # uint8
    logprobs_T: np.ndarray  # float32
    versions: VersionRuns
    advantage: float = 0.0
    score: float = 0.0

    def n_targets(self) -> int:
        return int(self.targets_T.sum())

    def oldest_version(self) -> int:
        """Smallest policy version that sampled one of its targets."""
        return min(version for version, _ in self.versions)
