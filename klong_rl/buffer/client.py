"""The trajectory buffer: every state of a run that must outlive a process, in Redis.

    admit ─▶ queued ─claim─▶ running ─seal─▶ sealed ─next_to_judge, verdict─▶ judged ─┐ all members final
               ▲                │ append        │                                     ├─▶ group complete
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
The rules themselves are in `klong_rl.buffer.rules`, as plain Python.

A transition that hands out something new takes a `request` name. Left empty, each call is a new request and is retried
as one request within its deadline; a caller that repeats a call after `Unavailable` names it to get the same answer.
Every method raises `Unavailable` when Redis doesn't answer within the address's deadline, and `Full` (one of its kinds)
when the disk of Redis is full. At the memory limit only `admit` and `claim` do: new episodes wait, the others finish.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Self

from klong_rl.buffer.connection import Connection
from klong_rl.buffer.errors import Unavailable
from klong_rl.buffer.reader import Reader
from klong_rl.buffer.records import BufferAddress, Claim, ToJudge, WindowRef
from klong_rl.types import TRAINED, EpisodeSpec, Outcome, Segment, Verdict, Window, decode, encode

OLDEST_REDIS = 7  # its scripts can say which of them may run at the memory limit
JUDGE_VISIBLE_S = 900.0  # longer than a rubric takes; after it the judge is taken for dead


def _named(transition: str, request: str) -> str:
    """The name a receipt is kept under; a fresh one for a call that has no name of its own."""
    return f"{transition}:{request or uuid.uuid4().hex}"


def _check_server(where: str, version: str, eviction: str) -> None:
    if int(version.split(".")[0]) < OLDEST_REDIS:
        raise Unavailable(f"Redis at {where} is version {version}; the buffer's scripts need {OLDEST_REDIS} or later")
    if eviction != "noeviction":
        raise Unavailable(
            f"Redis at {where} has maxmemory-policy {eviction}, which loses trajectories when it is full; "
            "set it to noeviction"
        )


class Buffer(Reader):
    """A client of one run's buffer. Use it within one event loop; each process makes its own with `connect`."""

    @classmethod
    async def connect(cls, address: BufferAddress) -> Self:
        """A client, once Redis answers. Raises `Unavailable` also for a Redis that is too old or may evict keys."""
        connection = Connection(address)
        try:
            (info,) = await connection.read("connect", ("INFO",))
            _check_server(connection.where, info["redis_version"], info["maxmemory_policy"])
            await connection.load_scripts()
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def close(self) -> None:
        await self._redis.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Episodes

    async def admit(self, spec: EpisodeSpec) -> bool:
        """Queues an episode; False if it is known already. Raises Conflict for another spec or group size, Full."""
        new = await self._redis.transition("admit", spec.id, spec.group, spec.group_size, spec.purpose, encode(spec))
        return bool(new[0])

    async def claim(self, owner: str, request: str = "") -> Claim | None:
        """Takes the most urgent queued episode: evaluation first, then as admitted; or None. Raises Full."""
        answer = await self._redis.transition("claim", owner, _named("claim", request))
        return Claim(decode(answer[0], EpisodeSpec), answer[1]) if answer else None

    async def append(self, episode: str, epoch: int, segment: Segment) -> None:
        """Adds the next segment. Raises StaleEpoch, OutOfSequence, or Conflict for other bytes under an old number."""
        if segment.episode != episode:
            raise ValueError(f"segment of episode {segment.episode} appended to {episode}; append it to its own")
        await self._redis.transition("append", episode, epoch, segment.seq, encode(segment))

    async def seal(self, episode: str, epoch: int, outcome: Outcome) -> None:
        """Ends a running episode and queues it for judging. Raises StaleEpoch, or Conflict for a second outcome."""
        if outcome.kind not in TRAINED:
            raise ValueError(
                f"outcome {outcome.kind!r} of episode {episode} can't be judged: requeue an infrastructure failure, "
                f"drop a task failure; sealed are {', '.join(TRAINED)}"
            )
        await self._redis.transition("seal", episode, epoch, encode(outcome), outcome.kind)

    async def requeue(self, episode: str, epoch: int, reason: str, keep_segments: bool = False) -> int:
        """Gives a running episode back, or a sealed one whose remains can't be judged; its failures so far.

        Its segments go, unless the next holder resumes from them (`keep_segments`). It keeps its place in the order of
        admission. Raises StaleEpoch.
        """
        answer = await self._redis.transition("requeue", episode, epoch, reason, int(keep_segments))
        return answer[0]

    async def requeue_running(
        self, reason: str, keep_segments: bool = False, and_sealed: bool = False, request: str = ""
    ) -> int:
        """Gives back whatever is running, when no holder can be left: a new driver on an old run. Not a failure.

        What judges hold is judged again at once; with `and_sealed`, its sandboxes being gone, it is given back too.
        """
        answer = await self._redis.transition(
            "requeue_running", reason, _named("requeue_running", request), int(keep_segments), int(and_sealed)
        )
        return answer[0]

    async def drop(self, episode: str, reason: str, epoch: int | None = None) -> bool:
        """Makes an episode final without a verdict; False if it was final before. Its segments go.

        A holder passes its epoch (StaleEpoch if it lost the episode); the straggler rule passes none.
        """
        answer = await self._redis.transition("drop", episode, reason, "" if epoch is None else epoch)
        return bool(answer[0])

    # Verdicts and groups

    async def next_to_judge(self, owner: str, visible_s: float = JUDGE_VISIBLE_S, request: str = "") -> ToJudge | None:
        """The most urgent sealed episode, hidden from other judges for `visible_s` seconds. None if there is none.

        Raises StaleEpoch when a repeated request's episode was requeued since.
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
            args += [window.id, encode(ref), ref.n_tokens, encode(window)]
        answer = await self._redis.transition("close_group", group, *args)
        return bool(answer[0])

    # Training

    async def lease(self, step: int, n_groups: int, oldest_version: int) -> list[WindowRef]:
        """The windows of `n_groups` whole groups for a step, those closed first coming first.

        Windows with a token sampled before `oldest_version` are dropped as stale and counted on the way; a group
        left without windows is consumed. If fewer than `n_groups` groups are left, the answer is empty and nothing is
        leased. The same step again gets the same windows. Raises Committed for a step already committed.
        """
        if n_groups < 1 or step < 0 or oldest_version < 0:
            raise ValueError(f"lease(step={step}, n_groups={n_groups}, oldest_version={oldest_version}): too small")
        refs = await self._redis.transition("lease", step, n_groups, oldest_version)
        return [decode(ref, WindowRef) for ref in refs]

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
