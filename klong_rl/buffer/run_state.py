"""What the buffer's rules act on: the state of one run as plain Python, and the looks at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from klong_rl.buffer.errors import StaleEpoch, Unknown
from klong_rl.buffer.line import Line
from klong_rl.buffer.records import Counts, EpisodeLimits, Ready, Snapshot, WindowRef
from klong_rl.types import EpisodeSpec, Outcome, Verdict, Window

Rank = tuple[bool, int]  # (is training, order of admission): evaluation sorts first


@dataclass
class Episode:
    spec: EpisodeSpec
    rank: Rank
    group: str  # of its spec, until that is closed early
    state: str = "queued"
    epoch: int = 0
    failures: int = 0
    owner: str = ""
    segments: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # action tokens of each
    intended: tuple[bytes, int] | None = None  # the turn, and its action tokens
    snapshot: Snapshot | None = None
    furthest: int = 0  # the most segments it had before a rewind
    limits: EpisodeLimits | None = None  # once extended
    outcome: Outcome | None = None
    verdict: Verdict | None = None
    reason: str = ""
    hidden_until_ms: int = 0  # while sealed: a judge has it until then; 0: none has


@dataclass
class Group:
    size: int
    purpose: str
    rank: Rank
    members: list[str] = field(default_factory=list)
    state: str = "open"  # then complete, ready, leased, consumed
    order: int = 0  # of closing
    refs: list[WindowRef] = field(default_factory=list)
    step: int | None = None  # that trained it, once committed
    rest: str = ""  # once closed early: the group that its late members became
    came_in: dict[str, float] = field(default_factory=dict)  # of such a rest: the scores that came in before


class RunState:
    """One run's buffer, and what more than one rule does to it."""

    def __init__(self) -> None:
        self.episodes: dict[str, Episode] = {}
        self.groups: dict[str, Group] = {}
        self.windows: dict[str, Window] = {}
        self.leases: dict[int, list[str]] = {}
        self.committed = -1
        self.version = 0
        self.forgotten: set[str] = set()
        self.eval_scores: dict[str, dict[str, float]] = {}
        self.receipts: dict[tuple[str, str], tuple] = {}  # by transition and request
        self.order = 0
        self._queued = Line(lambda i: i in self.episodes and self.episodes[i].state == "queued")
        self._judging = Line(lambda i: self._waits_for_judge(i) and not self.episodes[i].hidden_until_ms)
        self._judging_out = Line(lambda i: self._waits_for_judge(i) and self.episodes[i].hidden_until_ms > 0)
        self._complete = Line(lambda name: name in self.groups and self.groups[name].state == "complete")
        self._ready_line = Line(lambda name: name in self.groups and self.groups[name].state == "ready")
        self.drops: Counter[str] = Counter()
        self.requeues: Counter[str] = Counter()
        self.outcomes: dict[str, Counter[str]] = {"train": Counter(), "eval": Counter()}
        self.states: Counter[str] = Counter()
        self.window_counts: Counter[str] = Counter()
        self.appended: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()

    # Looks

    def ready(self) -> Ready:
        refs = [ref for name in self._ready() for ref in self.groups[name].refs]
        return Ready(len(refs), sum(ref.n_tokens for ref in refs), len(self._ready()))

    def consumed(self) -> list[str]:
        names = [name for name, group in self.groups.items() if group.state == "consumed"]
        return sorted(names, key=lambda name: self.groups[name].order)

    def counts(self) -> Counts:
        outcomes = {purpose: dict(+kinds) for purpose, kinds in self.outcomes.items()}
        return Counts(
            dict(+self.states), outcomes, dict(self.drops), dict(self.requeues), dict(+self.window_counts),
            dict(+self.appended), dict(+self.discarded), dict(+self.sampled),
        )  # fmt: skip

    def scores(self, group_prefix: str = "") -> dict[str, float]:
        groups = [scores for name, scores in self.eval_scores.items() if name.startswith(group_prefix)]
        return {episode: score for scores in groups for episode, score in scores.items()}

    # Parts

    def _episode(self, episode: str) -> Episode:
        if episode not in self.episodes:
            raise Unknown("episode", episode)
        return self.episodes[episode]

    def _group(self, name: str) -> Group:
        if name not in self.groups:
            raise Unknown("group", name)
        return self.groups[name]

    def _held(self, episode: str, epoch: int) -> Episode:
        e = self._episode(episode)
        if epoch != e.epoch:
            raise StaleEpoch(episode, epoch, e.epoch, e.state)
        return e

    def _need(self, e: Episode, held: int, *states: str) -> None:
        if e.state not in states:
            raise StaleEpoch(e.spec.id, held, e.epoch, e.state)

    def _next_order(self) -> int:
        self.order += 1
        return self.order

    def _move(self, e: Episode, state: str) -> None:
        self.states[e.state] -= 1
        self.states[state] += 1
        e.state = state
        if state == "queued":
            self._queued.add(e.rank, e.spec.id)
        elif state == "sealed":
            self._judging.add(e.rank, e.spec.id)

    def _waits_for_judge(self, episode: str) -> bool:
        return episode in self.episodes and self.episodes[episode].state == "sealed"

    def _show_to_judges(self, e: Episode) -> None:
        e.hidden_until_ms = 0
        if e.state == "sealed":
            self._judging.add(e.rank, e.spec.id)

    def _discard(self, e: Episode, n: int, reason: str) -> int:
        tokens = sum(e.sizes[n:]) + (e.intended[1] if e.intended else 0)
        e.segments, e.sizes, e.intended = e.segments[:n], e.sizes[:n], None
        self.discarded[reason] += tokens
        return tokens

    def _back_to_queue(self, e: Episode, reason: str) -> None:
        self.requeues[reason] += 1
        self._move(e, "queued")

    def _settle(self, e: Episode) -> None:
        group = self.groups[e.group]
        final = [i for i in group.members if self.episodes[i].state in ("judged", "dropped")]
        if len(final) == group.size:
            group.state = "complete"
            self._complete.add(group.rank, e.group)

    def _ready(self) -> list[str]:
        names = [name for name, group in self.groups.items() if group.state == "ready"]
        return sorted(names, key=lambda name: self.groups[name].order)

    def _freshen(self, group: Group, oldest: int, dead: Sequence[int]) -> bool:
        stale = [ref for ref in group.refs if ref.oldest_version < oldest or set(ref.versions) & set(dead)]
        for ref in stale:
            del self.windows[ref.id]
        group.refs = [ref for ref in group.refs if ref not in stale]
        self.window_counts["ready"] -= len(stale)
        self.window_counts["stale"] += len(stale)
        if not group.refs:
            group.state = "consumed"
        return bool(group.refs)

    def _move_windows(self, name: str, state: str) -> None:
        group = self.groups[name]
        self.window_counts[group.state] -= len(group.refs)
        self.window_counts[state] += len(group.refs)
        group.state = state
        if state == "ready":
            self._ready_line.add(group.order, name)
