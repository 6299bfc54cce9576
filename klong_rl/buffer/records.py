"""What the buffer hands out, beside the records of `klong_rl.types`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from klong_rl.buffer.url import parse
from klong_rl.types import EpisodeSpec, Outcome, Segment, Turn, Verdict, Window
from klong_rl.wire import WireError

# The run is the hash tag of every key, so braces would move keys to other slots of a cluster.
_RUN = re.compile(r"[A-Za-z0-9._-]+")


class BufferAddress(msgspec.Struct, frozen=True):
    """Where a run's buffer is; plain and picklable, so that every actor and rank can connect by itself.

    >>> BufferAddress("unix:///runs/relay/redis/redis.sock", "relay")
    """

    url: str  # one of klong_rl.buffer.url's
    run: str
    deadline_s: float = 30.0  # for one call, waiting for a restarted Redis or a fail-over included
    memory_mb: int = 0  # the buffer's share of the server; new episodes wait from HIGH_WATER of it on; 0: no limit

    def __post_init__(self) -> None:
        parse(self.url)
        if not _RUN.fullmatch(self.run):
            raise ValueError(f"run name {self.run!r}: may hold letters, digits, '.', '_' and '-'; rename the run")
        if self.deadline_s <= 0:
            raise ValueError(f"deadline_s {self.deadline_s}: must be above 0 seconds")


class WindowRef(msgspec.Struct, frozen=True, array_like=True):
    """A window without its arrays: what a learner needs to plan a step. The order of fields is read by the scripts."""

    id: str
    n_tokens: int
    n_targets: int
    versions: tuple[int, ...]  # that sampled its targets, oldest first, each once
    stage: int
    group: str

    @classmethod
    def of(cls, window: Window) -> WindowRef:
        versions = tuple(sorted({version for version, _ in window.versions}))
        return cls(window.id, len(window.tokens_T), window.n_targets(), versions, window.stage, window.group)

    @property
    def oldest_version(self) -> int:
        return self.versions[0]

    def pack(self) -> bytes:
        """A MessagePack array, which the scripts read too."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def unpack(cls, packed: bytes) -> WindowRef:
        """What `pack` made. Raises WireError for anything else."""
        try:
            return _REF.decode(packed)
        except (msgspec.DecodeError, ValueError) as error:
            raise WireError(f"WindowRef: {packed[:64]!r} is no reference of a window: {error}") from error


_REF = msgspec.msgpack.Decoder(WindowRef)


class EpisodeLimits(NamedTuple):
    """How far an episode may go."""

    timeout_s: float  # active seconds
    max_turns: int


def limits_of(extended: Sequence[bytes | None]) -> EpisodeLimits | None:
    """The limits in the fields timeout_s and max_turns of an episode; None while they are those it came with."""
    if not extended or extended[0] is None:
        return None
    return EpisodeLimits(float(extended[0]), int(extended[1]))


def limited(spec: EpisodeSpec, limits: EpisodeLimits | None) -> EpisodeSpec:
    """The spec with the limits it has now."""
    return spec if limits is None else msgspec.structs.replace(spec, **limits._asdict())


class Snapshot(NamedTuple):
    """A file system to go on from: that of the sandbox after `n_segments` segments."""

    image: str
    n_segments: int


class Progress(NamedTuple):
    """What a new holder of an episode goes on from."""

    segments: list[Segment]
    intended: Turn | None  # its command may have run, in part or in whole; its observation never came
    snapshot: Snapshot | None
    outcome: Outcome | None  # it had ended, and went back because it could not be judged


class Claim(NamedTuple):
    """An episode to run, with its limits as they are now. `epoch` fences all that its holder writes."""

    spec: EpisodeSpec
    epoch: int


class ToJudge(NamedTuple):
    """A sealed episode to score."""

    spec: EpisodeSpec
    epoch: int
    outcome: Outcome


class Member(NamedTuple):
    """One episode of a group as it ended. A dropped one has neither verdict nor segments."""

    spec: EpisodeSpec
    outcome: Outcome | None
    verdict: Verdict | None
    segments: list[Segment]


class Result(NamedTuple):
    """How one episode of a group ended. A dropped one has neither outcome nor verdict."""

    outcome: Outcome | None
    verdict: Verdict | None
    n_segments: int
    ended: float | None  # when it came into its last state, Unix seconds by the clock of Redis


class Age(NamedTuple):
    """How long an episode of a group has taken: from its first claim to its verdict, or to now. 0 before the first."""

    episode: str
    state: str
    seconds: float


class GroupProgress(NamedTuple):
    """`rank` is the group's place in the order of urgency, least first; `n_open` members have not ended yet."""

    rank: float
    n_open: int


class EpisodeView(NamedTuple):
    """Where an episode stands."""

    spec: EpisodeSpec
    state: str  # queued, running, sealed, judged or dropped
    epoch: int  # how often it was claimed
    failures: int  # how often a holder gave it up since it last got further; the death of a holder is not one
    owner: str  # who claimed it last, to run it or to judge it; "" before the first
    n_segments: int
    outcome: Outcome | None
    verdict: Verdict | None
    reason: str  # why it was dropped, else ""
    group: str = ""  # of its spec, until that was closed early


class InProgress(NamedTuple):
    """An episode that isn't final."""

    id: str
    state: str  # queued, running or sealed
    since: float | None  # when it came into that state, Unix seconds; None if an older version put it there
    owner: str  # who claimed it last, to run it or to judge it
    snapshot: str = ""  # the image that it goes on from where its sandbox is lost
    group: str = ""
    purpose: str = ""  # train or eval


class Brief(NamedTuple):
    """An episode in a line. `outcome` and `reason` (of a drop) are "" and `score` is None where there is none."""

    id: str
    state: str  # queued, running, sealed, judged or dropped
    purpose: str
    outcome: str
    reason: str
    score: float | None
    n_segments: int


class Ready(NamedTuple):
    """What a lease could take now, before staleness."""

    n_windows: int
    n_tokens: int
    n_groups: int


class Counts(NamedTuple):
    """How much has passed through, since the run began."""

    states: dict[str, int]  # episodes by the state they are in
    outcomes: dict[str, dict[str, int]]  # judged episodes: purpose -> outcome kind -> how many
    drops: dict[str, int]  # episodes by reason
    requeues: dict[str, int]  # by reason
    windows: dict[str, int]  # ready, leased, consumed, stale (dropped as too old)
    appended: dict[str, int]  # "segments" and the action "tokens" in them
    discarded: dict[str, int]  # action tokens given up, by reason: rewound, or of a dropped episode
    sampled: dict[str, int] = {}  # of judged episodes of agents from outside: tokens attributed, or masked by reason
