"""The looks at a buffer. They change nothing; one that reads several keys may see them moments apart, which is enough:
whatever is decided on a look is checked again by the transition that follows it."""

from __future__ import annotations

from collections.abc import Sequence

from klong_rl.buffer.errors import Unknown
from klong_rl.buffer.group_reader import if_any, seconds, whole
from klong_rl.buffer.overview import EPISODES_A_READ, Overview
from klong_rl.buffer.records import (
    Counts,
    EpisodeView,
    InProgress,
    Progress,
    Ready,
    Snapshot,
    WindowRef,
)
from klong_rl.types import EpisodeSpec, Outcome, Segment, Turn, Verdict, Window


class Reader(Overview):
    """What can be asked of a buffer. Every method raises `Unavailable` when no answer comes by the deadline, and
    `WireError`, naming the key, for a record there that is damaged."""

    async def episode(self, episode: str) -> EpisodeView:
        """Where an episode stands. Raises Unknown."""
        key = self._key("episode", episode)
        fields = ("spec", "state", "epoch", "failures", "owner", "outcome", "verdict", "reason", "group")
        found, n_segments = await self._redis.read(
            "episode", ("HMGET", key, *fields), ("LLEN", self._key("sizes", episode))
        )
        spec, state, epoch, failures, owner, outcome, verdict, reason, group = found
        if spec is None:
            raise Unknown("episode", episode)
        return EpisodeView(
            spec=whole(spec, EpisodeSpec, key),
            state=state.decode(),
            epoch=int(epoch),
            failures=int(failures),
            owner=(owner or b"").decode(),
            n_segments=n_segments,
            outcome=if_any(outcome, Outcome, key),
            verdict=if_any(verdict, Verdict, key),
            reason=(reason or b"").decode(),
            group=group.decode(),
        )

    async def segments(self, episode: str) -> list[Segment]:
        """All segments of an episode, in order. Raises Unknown if its holder gives some of them up meanwhile."""
        (n,) = await self._redis.read("segments", ("LLEN", self._key("sizes", episode)))
        return (await self._segments("segments", {episode: n}))[episode]

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
            intended=if_any(intended, Turn, key),
            snapshot=Snapshot(image.decode(), int(n_segments)) if image else None,
            outcome=if_any(outcome, Outcome, key),
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
                    found.append(InProgress(episode, state.decode(), seconds(since), *words))
        return found

    async def running(self, owner: str = "") -> list[tuple[str, int]]:
        """(episode, epoch) of what is running, of one owner if named: what to requeue when it has died."""
        (held,) = await self._redis.read("running", ("HGETALL", self._key("running")))
        pairs = [(episode.decode(), *holder.decode().split(" ", 1)) for episode, holder in held.items()]
        return sorted((episode, int(epoch)) for episode, epoch, holder in pairs if owner in ("", holder))

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
        return [whole(data, Window, key) for key, data in zip(keys, found, strict=True)]

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
            "sampled",
        )  # fmt: skip
        found = await self._redis.read("counts", *(("HGETALL", self._key("n", name)) for name in names))
        tables = [{field.decode(): int(n) for field, n in table.items() if int(n)} for table in found]
        states, train, evaluation, *others = tables
        return Counts(states, {"train": train, "eval": evaluation}, *others)

    async def memory(self) -> tuple[int, int]:
        """Bytes that the Redis of the run uses, and its limit (0: none): what back-pressure looks at."""
        (memory,) = await self._redis.read("memory", ("INFO", "memory"))
        return memory["used_memory"], memory["maxmemory"]
