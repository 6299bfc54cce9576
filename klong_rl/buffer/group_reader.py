"""The looks at the groups of a buffer, and how a record that was read is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from klong_rl.buffer.connection import Connection
from klong_rl.buffer.errors import Unknown
from klong_rl.buffer.records import Age, GroupProgress, Member, Result
from klong_rl.types import EpisodeSpec, Outcome, Segment, Verdict
from klong_rl.wire import WireError, decode

T = TypeVar("T")


class GroupReader:
    """What can be asked of a group. Raises as klong_rl.buffer.reader.Reader."""

    def __init__(self, connection: Connection):
        self._redis = connection
        self._key = connection.key

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
                replace(whole(spec, EpisodeSpec, key), group=group),  # that of a rest isn't the spec's
                if_any(outcome, Outcome, key),
                if_any(verdict, Verdict, key),
                segments[episode],
            )
            for episode, (spec, outcome, verdict) in zip(episodes, found[::2], strict=True)
            for key in [self._key("episode", episode)]
        ]

    async def came_in(self, group: str) -> dict[str, float]:
        """Of the rest of a group that was closed early: the scores that came in before, by episode. Else nothing."""
        (scores,) = await self._redis.read("came_in", ("HGETALL", self._key("came_in", group)))
        return {episode.decode(): float(score) for episode, score in scores.items()}

    async def ages(self, group: str) -> list[Age]:
        """Of the members of a group that are admitted and not forgotten."""
        ids, time = await self._redis.read("ages", ("LRANGE", self._key("members", group), 0, -1), ("TIME",))
        fields, now_ms = ("state", "began", "since"), 1000 * int(time[0])
        found = await self._redis.read("ages", *(("HMGET", self._key("episode", i.decode()), *fields) for i in ids))
        ages = []
        for episode, (state, began, since) in zip(ids, found, strict=True):
            if state is not None:
                until_ms = int(since) if state == b"judged" else now_ms
                seconds = max(0, until_ms - int(began)) / 1e3 if began else 0.0
                ages.append(Age(episode.decode(), state.decode(), seconds))
        return ages

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
            Result(if_any(outcome, Outcome, key), if_any(verdict, Verdict, key), n_segments, seconds(since))
            for (key, _), (outcome, verdict, since), n_segments in zip(keys, found[::2], found[1::2], strict=True)
        ]

    async def _segments(self, what: str, held: dict[str, int], first: int = 0) -> dict[str, list[Segment]]:
        """Segments `first` to n of each episode. Raises Unknown for one that is gone since n was read."""
        keys = {episode: [self._key("segment", episode, seq) for seq in range(first, n)] for episode, n in held.items()}
        found = iter(await self._redis.read(what, *(("MGET", *some) for some in keys.values() if some)))
        return {
            episode: [whole(frame, Segment, key) for key, frame in zip(some, next(found), strict=True)] if some else []
            for episode, some in keys.items()
        }


def seconds(since: bytes | None) -> float | None:
    return int(since) / 1e3 if since else None


def whole(data: bytes | None, kind: type[T], key: str) -> T:
    if data is None:
        raise Unknown(kind.__name__.lower(), key)
    try:
        return decode(data, kind)
    except WireError as error:
        raise WireError(f"{key} holds a damaged record: {error}") from error


def if_any(data: bytes | None, kind: type[T], key: str) -> T | None:
    return None if data is None else whole(data, kind, key)
