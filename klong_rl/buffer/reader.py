"""The looks at a buffer. They change nothing; one that reads several keys may see them moments apart, which is enough:
whatever is decided on a look is checked again by the transition that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from klong_rl.buffer.connection import Connection
from klong_rl.buffer.errors import Unknown
from klong_rl.buffer.records import (
    Counts,
    EpisodeView,
    GroupProgress,
    InProgress,
    Member,
    Progress,
    Ready,
    Result,
    Snapshot,
    WindowRef,
)
from klong_rl.types import EpisodeSpec, Outcome, Segment, Turn, Verdict, Window
from klong_rl.wire import WireError, decode

T = TypeVar("T")

EPISODES_A_READ = 1000  # of a look at all of them: a reply of some 100 kB


class Reader:
    """What can be asked of a buffer. Every method raises `Unavailable` when no answer comes by the deadline, and
    `WireError`, naming the key, for a record there that is damaged."""

    def __init__(self, connection: Connection):
        self._redis = connection
        self._key = connection.key

    async def episode(self, episode: str) -> EpisodeView:
        """Where an episode stands. Raises Unknown."""
        key = self._key("episode", episode)
        fields = ("spec", "state", "epoch", "failures", "owner", "outcome", "verdict", "reason")
        found, n_segments = await self._redis.read(
            "episode", ("HMGET", key, *fields), ("LLEN", self._key("sizes", episode))
        )
        spec, state, epoch, failures, owner, outcome, verdict, reason = found
        if spec is None:
            raise Unknown("episode", episode)
        return EpisodeView(
            spec=_whole(spec, EpisodeSpec, key),
            state=state.decode(),
            epoch=int(epoch),
            failures=int(failures),
            owner=(owner or b"").decode(),
            n_segments=n_segments,
            outcome=_if_any(outcome, Outcome, key),
            verdict=_if_any(verdict, Verdict, key),
            reason=(reason or b"").decode(),
        )

    async def segments(self, episode: str) -> list[Segment]:
        """All segments of an episode, in order. Raises Unknown if its holder gives some of them up meanwhile."""
        (n,) = await self._redis.read("segments", ("LLEN", self._key("sizes", episode)))
        return (await self._segments("segments", {episode: n}))[episode]

    async def _segments(self, what: str, held: dict[str, int]) -> dict[str, list[Segment]]:
        """The first n segments of each episode. Raises Unknown for one that is gone since n was read."""
        keys = {episode: [self._key("segment", episode, seq) for seq in range(n)] for episode, n in held.items()}
        found = iter(await self._redis.read(what, *(("MGET", *some) for some in keys.values() if some)))
        return {
            episode: [_whole(frame, Segment, key) for key, frame in zip(some, next(found), strict=True)] if some else []
            for episode, some in keys.items()
        }

    async def progress(self, episode: str) -> Progress:
        """Where a new holder goes on. Raises Unknown."""
        key = self._key("episode", episode)
        fields = ("state", "intended", "snapshot", "snapshot_at", "outcome")
        found, held = await self._redis.read("progress", ("HMGET", key, *fields), ("LLEN", self._key("sizes", episode)))
        state, intended, image, n_segments, outcome = found
        if state is None:
            raise Unknown("episode", episode)
        return Progress(
            segments=(await self._segments("progress", {episode: held}))[episode],
            intended=_if_any(intended, Turn, key),
            snapshot=Snapshot(image.decode(), int(n_segments)) if image else None,
            outcome=_if_any(outcome, Outcome, key),
        )

    async def in_progress(self) -> list[InProgress]:
        """Every episode that is queued, running or sealed."""
        queued, running, waiting, held = await self._redis.read(
            "in_progress",
            ("ZRANGE", self._key("queued"), 0, -1),
            ("HKEYS", self._key("running")),
            ("ZRANGE", self._key("judging"), 0, -1),
            ("ZRANGE", self._key("judging_out"), 0, -1),
        )
        ids = [episode.decode() for episode in (*queued, *running, *waiting, *held)]
        found: list[InProgress] = []
        for first in range(0, len(ids), EPISODES_A_READ):
            some = ids[first : first + EPISODES_A_READ]
            fields = ("state", "since", "owner", "snapshot", "group", "purpose")
            rows = await self._redis.read(
                "in_progress", *(("HMGET", self._key("episode", each), *fields) for each in some)
            )
            for episode, (state, since, *texts) in zip(some, rows, strict=True):
                if state is not None:  # else forgotten between the two reads
                    words = ((text or b"").decode() for text in texts)
                    found.append(InProgress(episode, state.decode(), _seconds(since), *words))
        return found

    async def running(self, owner: str = "") -> list[tuple[str, int]]:
        """(episode, epoch) of what is running, of one owner if named: what to requeue when it has died."""
        (held,) = await self._redis.read("running", ("HGETALL", self._key("running")))
        pairs = [(episode.decode(), *holder.decode().split(" ", 1)) for episode, holder in held.items()]
        return sorted((episode, int(epoch)) for episode, epoch, holder in pairs if owner in ("", holder))

    async def next_group_to_close(self) -> str | None:
        """The most urgent group whose members are all final; it stays that until `close_group`."""
        (found,) = await self._redis.read("next_group_to_close", ("ZRANGE", self._key("complete"), 0, 0))
        return found[0].decode() if found else None

    async def group(self, group: str) -> list[Member]:
        """The members of a group in order of admission. Raises Unknown."""
        (ids,) = await self._redis.read("group", ("LRANGE", self._key("members", group), 0, -1))
        if not ids:
            raise Unknown("group", group)
        episodes = [i.decode() for i in ids]
        commands: list[tuple] = []
        for episode in episodes:
            commands.append(("HMGET", self._key("episode", episode), "spec", "outcome", "verdict"))
            commands.append(("LLEN", self._key("sizes", episode)))
        found = await self._redis.read("group", *commands)
        if any(spec is None for spec, _, _ in found[::2]):  # forgotten between the two reads
            raise Unknown("group", group)
        segments = await self._segments("group", dict(zip(episodes, found[1::2], strict=True)))
        return [
            Member(
                _whole(spec, EpisodeSpec, key),
                _if_any(outcome, Outcome, key),
                _if_any(verdict, Verdict, key),
                segments[episode],
            )
            for episode, (spec, outcome, verdict) in zip(episodes, found[::2], strict=True)
            for key in [self._key("episode", episode)]
        ]

    async def group_progress(self, group: str) -> GroupProgress:
        """How urgent the verdicts of a group are. Raises Unknown."""
        found, ids = await self._redis.read(
            "group_progress",
            ("HMGET", self._key("group", group), "rank", "size"),
            ("LRANGE", self._key("members", group), 0, -1),
        )
        if found[0] is None:
            raise Unknown("group", group)
        states = await self._redis.read(
            "group_progress", *(("HGET", self._key("episode", i.decode()), "state") for i in ids)
        )
        n_ended = sum(state in (b"sealed", b"judged", b"dropped") for state in states)
        return GroupProgress(rank=float(found[0]), n_open=int(found[1]) - n_ended)

    async def group_states(self, groups: Sequence[str]) -> dict[str, str]:
        """The state of each group that is known and not archived: open, complete, ready, leased or consumed."""
        if not groups:
            return {}
        found = await self._redis.read(
            "group_states", *(("HGET", self._key("group", group), "state") for group in groups)
        )
        return {group: state.decode() for group, state in zip(groups, found, strict=True) if state is not None}

    async def results(self, group: str) -> list[Result]:
        """How the episodes of a group ended, without their segments. Raises Unknown."""
        (ids,) = await self._redis.read("results", ("LRANGE", self._key("members", group), 0, -1))
        if not ids:
            raise Unknown("group", group)
        keys = [(self._key("episode", i.decode()), self._key("sizes", i.decode())) for i in ids]
        commands: list[tuple] = []
        for episode, sizes in keys:
            commands += [("HMGET", episode, "outcome", "verdict", "since"), ("LLEN", sizes)]
        found = await self._redis.read("results", *commands)
        return [
            Result(_if_any(outcome, Outcome, key), _if_any(verdict, Verdict, key), n_segments, _seconds(since))
            for (key, _), (outcome, verdict, since), n_segments in zip(keys, found[::2], found[1::2], strict=True)
        ]

    async def scores(self, group_prefix: str = "") -> dict[str, float]:
        """Scores of the judged episodes in closed evaluation groups whose id begins so. They outlive `forget`."""
        low, high = f"[{group_prefix}".encode(), f"({group_prefix}".encode() + b"\xff"  # no UTF-8 text holds 0xff
        (groups,) = await self._redis.read("scores", ("ZRANGEBYLEX", self._key("eval_groups"), low, high))
        found = await self._redis.read("scores", *(("HGETALL", self._key("scores", g.decode())) for g in groups))
        return {episode.decode(): float(score) for scores in found for episode, score in scores.items()}

    async def ready(self) -> Ready:
        """What a lease could take now, before staleness: three small reads, made to be polled."""
        windows, tokens, groups = await self._redis.read(
            "ready",
            ("HGET", self._key("n", "windows"), "ready"),
            ("HGET", self._key("n", "tokens"), "ready"),
            ("ZCARD", self._key("ready")),
        )
        return Ready(int(windows or 0), int(tokens or 0), groups)

    async def leased_steps(self) -> list[int]:
        """Steps leased and neither committed nor rolled back, in order."""
        (steps,) = await self._redis.read("leased_steps", ("ZRANGE", self._key("leases"), 0, -1))
        return [int(step) for step in steps]

    async def leases(self) -> dict[int, list[str]]:
        """The groups leased to each step that is neither committed nor rolled back, in order."""
        steps = await self.leased_steps()
        found = await self._redis.read("leases", *(("LRANGE", self._key("lease", step), 0, -1) for step in steps))
        return {step: [g.decode() for g in groups] for step, groups in zip(steps, found, strict=True)}

    async def ready_groups(self) -> list[str]:
        """Groups that a lease could take, those closed first coming first."""
        (found,) = await self._redis.read("ready_groups", ("ZRANGE", self._key("ready"), 0, -1))
        return [group.decode() for group in found]

    async def windows(self, ids: Sequence[str]) -> list[Window]:
        """The windows of these ids, in this order. Raises Unknown naming the first that is missing."""
        if not ids:
            return []
        (found,) = await self._redis.read("windows", ("MGET", *(self._key("window", window) for window in ids)))
        for window, data in zip(ids, found, strict=True):
            if data is None:
                raise Unknown("window", window)
        keys = (self._key("window", window) for window in ids)
        return [_whole(data, Window, key) for key, data in zip(keys, found, strict=True)]

    async def refs(self, *groups: str) -> list[WindowRef]:
        """References of the windows of closed groups; a group has none if it made none or all were stale."""
        found = await self._redis.read("refs", *(("LRANGE", self._key("refs", group), 0, -1) for group in groups))
        return [WindowRef.unpack(ref) for refs in found for ref in refs]

    async def trained_at(self, group: str) -> int | None:
        """The step whose commit consumed a group; None for one that is consumed otherwise, or not yet."""
        (step,) = await self._redis.read("trained_at", ("HGET", self._key("group", group), "step"))
        return int(step) if step is not None else None

    async def committed_step(self) -> int:
        """The newest step whose leases are consumed for good; -1 before the first."""
        (step,) = await self._redis.read("committed_step", ("GET", self._key("committed")))
        return int(step) if step is not None else -1

    async def policy_version(self) -> int:
        """The newest policy version; 0 before the first."""
        (version,) = await self._redis.read("policy_version", ("GET", self._key("version")))
        return int(version or 0)

    async def consumed(self, limit: int = 100) -> list[str]:
        """Groups done with and not archived, oldest first. Archive each (`group`, `refs`, `windows`), then `forget`."""
        (found,) = await self._redis.read("consumed", ("ZRANGE", self._key("consumed"), 0, limit - 1))
        return [group.decode() for group in found]

    async def n_queued(self) -> int:
        """How many episodes wait to be claimed."""
        (n,) = await self._redis.read("n_queued", ("ZCARD", self._key("queued")))
        return n

    async def n_consumed(self) -> int:
        """How many groups are done with and not archived."""
        (n,) = await self._redis.read("n_consumed", ("ZCARD", self._key("consumed")))
        return n

    async def n_complete(self) -> int:
        """How many groups wait to be closed, every member final."""
        (n,) = await self._redis.read("n_complete", ("ZCARD", self._key("complete")))
        return n

    async def counts(self) -> Counts:
        """How much has passed through since the run began."""
        names = (
            "states", "outcomes:train", "outcomes:eval", "drops", "requeues", "windows", "appended", "discarded",
        )  # fmt: skip
        found = await self._redis.read("counts", *(("HGETALL", self._key("n", name)) for name in names))
        tables = [{field.decode(): int(n) for field, n in table.items() if int(n)} for table in found]
        states, train, evaluation, *others = tables
        return Counts(states, {"train": train, "eval": evaluation}, *others)

    async def memory(self) -> tuple[int, int]:
        """Bytes that the Redis of the run uses, and its limit (0: none): what back-pressure looks at."""
        (memory,) = await self._redis.read("memory", ("INFO", "memory"))
        return memory["used_memory"], memory["maxmemory"]


def _seconds(since: bytes | None) -> float | None:
    return int(since) / 1e3 if since else None


def _whole(data: bytes | None, kind: type[T], key: str) -> T:
    if data is None:
        raise Unknown(kind.__name__.lower(), key)
    try:
        return decode(data, kind)
    except WireError as error:
        raise WireError(f"{key} holds a damaged record: {error}") from error


def _if_any(data: bytes | None, kind: type[T], key: str) -> T | None:
    return None if data is None else _whole(data, kind, key)
