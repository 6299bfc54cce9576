"""The trajectory buffer: every state of a run that must outlive a process, in Redis.

    admit ─▶ queued ─claim─▶ running ─seal─▶ sealed ─next_to_judge, verdict─▶ judged ─┐ all members final
               ▲                │ intend, append│                                     ├─▶ group complete
               └─────requeue────┴───────────────┘    drop (from any of them) ▶ dropped ┘        │ close_group
                                                                                                ▼
          consumed ◀── commit(step) ── leased to a step ◀── lease(step) ── windows ready ◀──────┘
             │ forget                        └── rollback(step) ──▶ ready again, in their old order

Held at all times, and by one Lua script a change:
- Only the holder of an episode's newest epoch writes to it. Each claim makes a new epoch.
- A verdict, a close, a commit happens once; every transition may be delivered twice and acts once.
- A window is ready, leased, consumed or dropped as stale; never two of them, and never none.
- A lease gives whole groups, and what is committed is never given out again.
- The policy version only grows.
A group may be closed early (`part_group`): its late members become a group of their own.
The rules themselves are in `klong_rl.buffer.rules`, as plain Python.

A transition that hands out something new takes a `request` name. Left empty, each call is a new request and is retried
as one request within its deadline; a caller that repeats a call after `Unavailable` names it to get the same answer.
Every method raises `Unavailable` when Redis doesn't answer within the address's deadline, and `Full` (one of its kinds)
when the disk of Redis is full. Above the high-water mark of its memory (`klong_rl.buffer.memory`) only `admit` and
`claim` do: new episodes wait, the others finish, are trained and archived, and so make room. Nothing is ever evicted.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any, Self

from klong_rl.buffer.connection import Connection
from klong_rl.buffer.errors import Full, Unavailable
from klong_rl.buffer.memory import HighWaterMark
from klong_rl.buffer.reader import Reader
from klong_rl.buffer.records import BufferAddress, Claim, EpisodeLimits, ToJudge, WindowRef, limited, limits_of
from klong_rl.types import TRAINED, EpisodeSpec, Outcome, Segment, Turn, Verdict, Window
from klong_rl.wire import HEADER_BYTES, decode, encode

log = logging.getLogger(__name__)

OLDEST_REDIS = 7  # its scripts can say which of them may run at the memory limit
SEGMENTS_A_CALL = 32  # as header.lua has it
JUDGE_VISIBLE_S = 900.0  # longer than a rubric takes; after it the judge is taken for dead


def _named(transition: str, request: str) -> str:
    """The name a receipt is kept under; a fresh one for a call that has no name of its own."""
    return f"{transition}:{request or uuid.uuid4().hex}"


def _check_server(where: str, info: dict[str, Any]) -> None:
    """Refuses a server that can't keep a run; warns of one that keeps it in memory alone."""
    version, eviction = info["redis_version"], info["maxmemory_policy"]
    if int(version.split(".")[0]) < OLDEST_REDIS:
        raise Unavailable(f"Redis at {where} is version {version}; the buffer's scripts need {OLDEST_REDIS} or later")
    if eviction != "noeviction":
        raise Unavailable(
            f"Redis at {where} has maxmemory-policy {eviction}, which loses trajectories when it is full; "
            "set it to noeviction"
        )
    if not info["aof_enabled"]:
        log.warning(
            "Redis at %s keeps no append-only file: if it crashes, all since its last snapshot is lost, episodes and "
            "what is trained alike; set appendonly yes there (docs/buffer.md)",
            where,
        )


class Buffer(Reader):
    """A client of one run's buffer. Use it within one event loop; each process makes its own with `connect`."""

    @classmethod
    async def connect(cls, address: BufferAddress) -> Self:
        """A client, once Redis answers. Raises `Unavailable` also for a Redis that is too old or may evict keys."""
        connection = Connection(address)
        try:
            (info,) = await connection.read("connect", ("INFO",))
            _check_server(connection.where, info)
            await connection.load_scripts()
        except BaseException:
            await connection.close()
            raise
        return cls(connection, HighWaterMark(address.memory_mb))

    def __init__(self, connection: Connection, mark: HighWaterMark):
        super().__init__(connection)
        self._mark = mark

    async def close(self) -> None:
        await self._redis.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Episodes

    async def admit(self, spec: EpisodeSpec) -> bool:
        """Queues an episode; False if it is known already. Raises Conflict for another spec or group size, Full."""
        await self._need_room("admit")
        new = await self._redis.transition("admit", spec.id, spec.group, spec.group_size, spec.purpose, encode(spec))
        return bool(new[0])

    async def claim(self, owner: str, request: str = "") -> Claim | None:
        """Takes the most urgent queued episode: evaluation first, then as admitted; or None. Raises Full."""
        await self._need_room("claim")
        answer = await self._redis.transition("claim", owner, _named("claim", request))
        if not answer:
            return None
        spec, epoch, *extended = answer
        return Claim(limited(decode(spec, EpisodeSpec), limits_of(extended)), epoch)

    async def intend(self, episode: str, epoch: int, seq: int, turn: Turn) -> None:
        """The write-ahead of an action: its turn as sampled, before its command runs, to be segment `seq`.

        It stays until that segment is appended, so that after a crash the command is known to have run perhaps. Raises
        StaleEpoch (then the command must not run), OutOfSequence, Conflict.
        """
        await self._redis.transition("intend", episode, epoch, seq, len(turn.action_A), encode(turn))

    async def append(self, episode: str, epoch: int, segment: Segment) -> EpisodeLimits | None:
        """Adds the next segment; the episode's limits if they were extended.

        Raises StaleEpoch, OutOfSequence, or Conflict for other bytes under an old number.
        """
        return await self.append_many(episode, epoch, [segment])

    async def append_many(self, episode: str, epoch: int, segments: Sequence[Segment]) -> EpisodeLimits | None:
        """As `append`, for the next 1 to SEGMENTS_A_CALL segments: all of them or, if it raises, none."""
        if not 1 <= len(segments) <= SEGMENTS_A_CALL:
            raise ValueError(f"{len(segments)} segments appended to {episode}; 1 to {SEGMENTS_A_CALL} go in a call")
        args, staged = [], {}
        for seq, segment in enumerate(segments, segments[0].seq):
            if (segment.episode, segment.seq) != (episode, seq):
                raise ValueError(
                    f"segment {segment.seq} of episode {segment.episode} appended to {episode} as segment {seq}; "
                    "append to its own, in order"
                )
            staged[self._key("staged", episode, seq)] = frame = encode(segment)
            args += [frame[:HEADER_BYTES], sum(len(turn.action_A) for turn in segment.turns)]
        return limits_of(await self._redis.transition("append", episode, epoch, segments[0].seq, *args, staged=staged))

    async def rewind(self, episode: str, epoch: int, n_segments: int, reason: str) -> int:
        """Gives up what follows the first `n_segments` segments of a running episode; how many action tokens.

        For a holder whose sandbox is gone: it goes on from its snapshot, or from the prompt. Counted by reason.
        Raises StaleEpoch.
        """
        return (await self._redis.transition("rewind", episode, epoch, n_segments, reason))[0]

    async def keep_snapshot(self, episode: str, epoch: int, n_segments: int, image: str) -> None:
        """Notes where a running or sealed episode can be restored from. Raises StaleEpoch, OutOfSequence."""
        await self._redis.transition("keep_snapshot", episode, epoch, n_segments, image)

    async def extend(self, group: str, timeout_s: float, max_turns: int) -> bool:
        """Lets all members of a group go further; False if one has ended already, or nothing grew. Raises Unknown.

        Who runs them learns it with the next `append`.
        """
        return bool((await self._redis.transition("extend", group, repr(float(timeout_s)), max_turns))[0])

    async def seal(self, episode: str, epoch: int, outcome: Outcome) -> None:
        """Ends a running episode and queues it for judging. Raises StaleEpoch, or Conflict for a second outcome."""
        if outcome.kind not in TRAINED:
            raise ValueError(
                f"outcome {outcome.kind!r} of episode {episode} can't be judged: requeue an infrastructure failure, "
                f"drop a task failure; sealed are {', '.join(TRAINED)}"
            )
        sampled = [part for kind in outcome.sampled().items() for part in kind]
        await self._redis.transition("seal", episode, epoch, encode(outcome), outcome.kind, *sampled)

    async def requeue(self, episode: str, epoch: int, reason: str) -> int:
        """Gives a running episode back, or a sealed one that can't be judged; its failures since it last got further.

        It keeps its segments and its place in the order of admission. Raises StaleEpoch.
        """
        return (await self._redis.transition("requeue", episode, epoch, reason))[0]

    async def abandon(self, owner: str, reason: str, request: str = "") -> int:
        """Gives back all that a dead `owner` ran, and lets what it judged be judged by others; how many it ran.

        Everybody's with "": a new driver on an old run. Segments stay, and it counts as no episode's failure.
        """
        return (await self._redis.transition("abandon", owner, reason, _named("abandon", request)))[0]

    async def drop(self, episode: str, reason: str, epoch: int | None = None) -> bool:
        """Makes an episode final without a verdict; False if it was final before. Its segments go.

        A holder passes its epoch (StaleEpoch if it lost the episode); the straggler rule passes none.
        """
        answer = await self._redis.transition("drop", episode, reason, "" if epoch is None else epoch)
        return bool(answer[0])

    # Verdicts and groups

    async def next_to_judge(self, owner: str, visible_s: float = JUDGE_VISIBLE_S, request: str = "") -> ToJudge | None:
        """The most urgent sealed episode, hidden from other judges for `visible_s` seconds. None if there is none.

        Raises StaleEpoch when a repeated request's episode was requeued or dropped since.
        """
        answer = await self._redis.transition(
            "next_to_judge", owner, round(visible_s * 1000), _named("next_to_judge", request)
        )
        if not answer:
            return None
        return ToJudge(decode(answer[0], EpisodeSpec), answer[1], decode(answer[2], Outcome))

    async def verdict(self, episode: str, epoch: int, verdict: Verdict) -> bool:
        """Scores a sealed episode; False if it has a verdict, which stands. Raises StaleEpoch for another attempt's."""
        answer = await self._redis.transition("verdict", episode, epoch, encode(verdict), repr(float(verdict.score)))
        return bool(answer[0])

    async def close_group(self, group: str, windows: Sequence[Window]) -> bool:
        """Makes the windows of a complete group ready, all at once; False if it was closed before, which stands.

        An evaluation group, and one with nothing to train, closes with no windows and is consumed at once. Raises
        WrongState while a member is open, and for windows of an evaluation group; Conflict for a window id in use.
        """
        ids = {window.id for window in windows}
        if len(ids) != len(windows):
            raise ValueError(f"group {group}: {len(windows)} windows with {len(ids)} ids; give each its own")
        args: list[str | int | bytes] = []
        for window in windows:
            if window.group != group or not window.versions:
                raise ValueError(f"window {window.id} (group {window.group}) has no target or isn't of group {group}")
            ref = WindowRef.of(window)
            args += [window.id, ref.pack(), ref.n_tokens, encode(window)]
        answer = await self._redis.transition("close_group", group, *args)
        return bool(answer[0])

    async def part_group(self, group: str, rest: str, least: int) -> bool:
        """Closes an open training group early, for the members that are final; the others become the group `rest`.

        False where fewer than `least` have a verdict, a member was never admitted, or the group isn't open. Raises
        Unknown; WrongState for an evaluation group and for the rest of another; Conflict for a name in use.
        """
        return bool((await self._redis.transition("part_group", group, rest, least))[0])

    # Training

    async def lease(
        self, step: int, n_groups: int, oldest_version: int, dead_versions: Sequence[int] = ()
    ) -> list[WindowRef]:
        """The windows of `n_groups` whole groups for a step, those closed first coming first.

        Beside them come the rests of groups that were closed early, as far as they closed before the last of these.
        Windows with a token sampled before `oldest_version`, or by one of `dead_versions` (which did not survive a
        restore), are dropped as stale and counted on the way; a group left without windows is consumed. If fewer than
        `n_groups` groups are left, the answer is empty and nothing is leased. The same step again gets the same
        windows. Raises Committed for a step already committed.
        """
        if n_groups < 1 or step < 0 or oldest_version < 0:
            raise ValueError(f"lease(step={step}, n_groups={n_groups}, oldest_version={oldest_version}): too small")
        refs = await self._redis.transition("lease", step, n_groups, oldest_version, *dead_versions)
        return [WindowRef.unpack(ref) for ref in refs]

    async def commit(self, step: int) -> int:
        """Consumes the leases of `step` and before, once its checkpoint is durable; the groups newly consumed.

        After a restore of the checkpoint of `step`: `commit(step)`, then `rollback(step)`.
        """
        return (await self._redis.transition("commit", step))[0]

    async def rollback(self, step: int) -> int:
        """Makes the leases of steps after `step` ready again, in their old order; the groups returned.

        Raises Committed if a later step is committed: what it trained can't be given out again.
        """
        return (await self._redis.transition("rollback", step))[0]

    async def publish_version(self, floor: int = 0, request: str = "") -> int:
        """A new policy version, above every earlier one and above `floor`.

        `floor` is the version in the learner's checkpoint: it holds the order even where Redis lost its last second.
        """
        return (await self._redis.transition("publish_version", floor, _named("publish_version", request)))[0]

    async def forget(self, group: str) -> bool:
        """Deletes a consumed group's episodes and windows; False if done before. Its episodes stay known to `admit`."""
        return bool((await self._redis.transition("forget", group))[0])

    async def _need_room(self, what: str) -> None:
        if self._mark.look_is_due():
            self._mark.saw(*await self.memory())
        if reason := self._mark.reason_to_wait():
            raise Full(f"{what}: Redis at {self._redis.where} {reason}")
