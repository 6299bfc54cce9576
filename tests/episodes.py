"""Small episodes for tests of the buffer, the same at each call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from klong_rl.buffer import Buffer
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict, Window


def spec(group: str, i: int = 0, size: int = 1, purpose: str = "train") -> EpisodeSpec:
    task = Task(id="relay/train/0", family="relay", instruction="Follow.", image="none", files={"a": b"\x00\xff"})
    return EpisodeSpec(
        id=f"{group}-{i}", group=group, group_size=size, stage=2, purpose=purpose, task=task, timeout_s=9.0, max_turns=4
    )


def segment(episode: str, seq: int, observation_tokens: int = 3) -> Segment:
    turn = Turn(
        index=seq, context_start=0, action_A=np.arange(5, dtype=np.int32), logprobs_A=np.full(5, -0.25, np.float32),
        versions=((0, 2), (1, 3)), observation_O=np.arange(observation_tokens, dtype=np.int32),
        command="ls", exit_code=0, seconds=0.5,
    )  # fmt: skip
    prefix = np.arange(7, dtype=np.int32) if seq == 0 else None
    return Segment(episode=episode, epoch=1, seq=seq, turns=(turn,), prefix_P=prefix)


def window(group: str, i: int, version: int = 0) -> Window:
    return Window(
        id=f"{group}/w{i}", episode=f"{group}-0", group=group, stage=2, tokens_T=np.arange(4 + i, dtype=np.int32),
        targets_T=np.r_[0, 1, 1, 0, [0] * i].astype(np.uint8), logprobs_T=np.zeros(4 + i, np.float32),
        versions=((version, 1), (version + 1, 1)), advantage=0.5, score=1.0,
    )  # fmt: skip


async def judged(buffer: Buffer, *specs: EpisodeSpec, score: float = 1.0) -> None:
    """Takes these episodes all the way to a verdict; nothing else may be queued."""
    for one in specs:
        await buffer.admit(one)
    for _ in specs:
        claim = await buffer.claim("actor")
        await buffer.append(claim.spec.id, claim.epoch, segment(claim.spec.id, 0))
        await buffer.seal(claim.spec.id, claim.epoch, Outcome(kind="submitted"))
        await buffer.verdict(claim.spec.id, claim.epoch, Verdict(score=score, evidence={"judge": "tests"}))


Step = tuple[str, Callable[[], Awaitable[Any]]]


def every_transition(b: Buffer) -> list[Step]:
    """Each transition of the buffer at least once, by name, in an order in which all of them are allowed."""
    seg, end, score = segment, Outcome(kind="submitted"), Verdict(score=0.5)
    steps: list[Step] = [("admit", lambda name=name, i=i: b.admit(spec(name, i, 2))) for name in "gh" for i in (0, 1)]
    steps += [
        ("claim", lambda: b.claim("a")),
        ("intend", lambda: b.intend("g-0", 1, 0, seg("g-0", 0).turns[0])),
        ("append", lambda: b.append("g-0", 1, seg("g-0", 0))),
        ("append", lambda: b.append("g-0", 1, seg("g-0", 1))),
        ("keep_snapshot", lambda: b.keep_snapshot("g-0", 1, 1, "image")),
        ("rewind", lambda: b.rewind("g-0", 1, 1, "sandbox lost")),
        ("extend", lambda: b.extend("g", 20.0, 8)),
        ("requeue", lambda: b.requeue("g-0", 1, "engine died")),
        ("claim", lambda: b.claim("a")),
        ("abandon", lambda: b.abandon("a", "actor died")),
        ("claim", lambda: b.claim("b")),
        ("append", lambda: b.append("g-0", 3, seg("g-0", 1))),
        ("seal", lambda: b.seal("g-0", 3, end)),
        ("next_to_judge", lambda: b.next_to_judge("j")),
        ("verdict", lambda: b.verdict("g-0", 3, score)),
        ("drop", lambda: b.drop("g-1", "task broken")),
        ("close_group", lambda: b.close_group("g", [window("g", 0), window("g", 1)])),
        ("lease", lambda: b.lease(0, 1, oldest_version=0)),
        ("rollback", lambda: b.rollback(-1)),
        ("lease", lambda: b.lease(0, 1, oldest_version=0)),
        ("publish_version", lambda: b.publish_version()),
        ("commit", lambda: b.commit(0)),
        ("forget", lambda: b.forget("g")),
        ("claim", lambda: b.claim("a")),
        ("append", lambda: b.append("h-0", 1, seg("h-0", 0))),
        ("seal", lambda: b.seal("h-0", 1, end)),
        ("next_to_judge", lambda: b.next_to_judge("j")),
        ("verdict", lambda: b.verdict("h-0", 1, score)),
        ("part_group", lambda: b.part_group("h", "h-late", 1)),
    ]
    return steps


async def every_look(b: Buffer) -> list[Any]:
    """What all looks of the buffer show of what `every_transition` made, at any point of it."""
    known = [row.id for row in await b.in_progress()]
    states = await b.group_states(["g", "h"])
    leases = await b.leases()
    seen = [await b.counts(), await b.ready(), await b.ready_groups(), leases, await b.refs(*states)]
    seen += [await b.running(), await b.consumed(), await b.policy_version(), await b.committed_step(), states]
    seen += [await b.scores(), await b.next_group_to_close(), await b.n_complete(), await b.n_consumed(), known]
    results = [result for group in states for result in await b.results(group)]
    seen += [[await b.episode(episode) for episode in known], [result._replace(ended=None) for result in results]]
    return seen + [[len(await b.segments(episode)) for episode in known]]
