"""The audit of `make chaos` reads what a real Redis writes: every transition is understood, and a theft is seen."""

from __future__ import annotations

import numpy as np
import pytest
import redis

from klong_rl.advantages import klong
from klong_rl.branches import joined
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.buffer.archive import ArchiveFiles, archive
from klong_rl.buffer.server import AOF_FOLDER
from klong_rl.chain import link
from klong_rl.groups import windows_of
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict
from tests.chaos.aof import increment, transactions
from tests.chaos.audit import LOST, Evidence, TrainedStep, audit
from tests.chaos.evidence import read_archive
from tests.chaos.replay import replay

pytestmark = pytest.mark.integration

PREFIX = np.array([1, 2], np.int32)
TASK = Task(id="t", family="f", instruction="i", image="image")


class Run:
    """A holder, a judge and a learner in one, on a real buffer."""

    def __init__(self, server: EmbeddedRedis, buffer: Buffer, tmp_path) -> None:
        self.server, self.buffer, self.folder = server, buffer, tmp_path / "archive"
        self.turns: list[Turn] = []
        self.ledger: list[TrainedStep] = []

    async def begin(self, episode: str, group: str, purpose: str = "train") -> None:
        spec = EpisodeSpec(
            id=episode, group=group, group_size=1, stage=1, purpose=purpose, task=TASK, timeout_s=9.0, max_turns=9
        )
        await self.buffer.admit(spec)
        self.turns = []
        await self.claim()

    async def claim(self) -> None:
        claim = await self.buffer.claim("rollout-0.1")
        self.episode, self.epoch, self.group = claim.spec.id, claim.epoch, claim.spec.group

    async def intend(self, *action: int) -> Turn:
        action_A = np.array(action, np.int32)
        turn = Turn(
            index=len(self.turns),
            context_start=0,
            action_A=action_A,
            logprobs_A=np.zeros(len(action), np.float32),
            versions=((1, len(action)),),
            observation_O=np.array([9], np.int32),
            chain=link(self.turns[-1].chain if self.turns else b"", joined(PREFIX, self.turns), action_A),
        )
        await self.buffer.intend(self.episode, self.epoch, turn.index, turn)
        return turn

    async def append(self, turn: Turn) -> None:
        seq = turn.index
        prefix_P = None if seq else PREFIX
        segment = Segment(episode=self.episode, epoch=self.epoch, seq=seq, turns=(turn,), prefix_P=prefix_P)
        await self.buffer.append(self.episode, self.epoch, segment)
        self.turns.append(turn)

    async def act(self, *action: int) -> None:
        await self.append(await self.intend(*action))

    async def finish(self) -> None:
        await self.buffer.seal(self.episode, self.epoch, Outcome(kind="submitted"))
        await self.buffer.next_to_judge("judge-0.1")
        await self.buffer.verdict(self.episode, self.epoch, Verdict(score=1.0))
        await self.buffer.close_group(self.group, windows_of(await self.buffer.group(self.group), klong))

    async def learn(self, step: int) -> None:
        refs = await self.buffer.lease(step, 1, 1)
        tokens = sum(ref.n_targets for ref in refs)
        self.ledger.append(TrainedStep(step, step, tuple(ref.id for ref in refs), tokens, step - 1))
        await self.buffer.publish_version()

    async def audit(self, lineage):
        """Of what the files say once the server has ended."""
        await archive(self.buffer, ArchiveFiles(self.folder), set())
        await self.buffer.close()
        self.server.stop()
        history = replay("run", transactions(increment(self.server.dir / AOF_FOLDER)))
        evidence = Evidence(history, read_archive(self.folder), self.ledger, lineage, 1, len(self.ledger))
        return audit(evidence), history


@pytest.fixture
async def run(tmp_path):
    server = EmbeddedRedis(tmp_path / "run")
    server.start()
    buffer = await Buffer.connect(BufferAddress(server.url, "run"))
    yield Run(server, buffer, tmp_path)
    await buffer.close()
    server.stop()


async def test_every_transition_is_understood(run):
    await run.buffer.publish_version()
    await run.begin("a", "group-a")
    await run.act(10, 11)
    await run.act(12)
    await run.intend(13)
    await run.buffer.abandon("rollout-0.1", "it died")
    await run.claim()
    await run.buffer.rewind("a", run.epoch, 1, "its sandbox is gone")
    run.turns = run.turns[:1]
    turn = await run.intend(14, 15)
    await run.buffer.abandon("", "launched again")
    await run.claim()
    await run.append(turn)
    await run.finish()

    await run.begin("d", "group-d")
    await run.act(40)
    await run.buffer.drop("d", "gave up", run.epoch)
    await run.buffer.close_group("group-d", [])
    await run.begin("v", "group-v", "eval")
    await run.act(50, 51)
    await run.finish()

    await run.learn(1)
    run.ledger.clear()
    await run.buffer.rollback(0)
    await run.learn(1)
    await run.buffer.commit(1)
    await run.begin("b", "group-b")
    await run.act(20)
    await run.finish()
    assert await run.buffer.lease(2, 1, 2) == []  # too stale: dropped on the way
    await run.begin("c", "group-c")
    await run.act(30)

    found, history = await run.audit(lineage=[(1, 0), (3, 1)])
    assert found.crimes == []
    assert found.tokens == {
        "trained": 4,
        "given up: its sandbox is gone": 2,
        "given up: gave up": 1,
        "given up: stale window": 1,
        "evaluation": 2,
        "left in the buffer, for a later step": 1,
    }
    assert [lease.end for lease in history.leases] == ["rolled back", "committed"]
    assert history.went_on() == ["a"]
    assert history.versions == [1, 2, 3]


async def test_a_segment_that_somebody_takes_out_of_redis_is_lost(run):
    await run.buffer.publish_version()
    await run.begin("a", "group-a")
    await run.act(10, 11)
    with redis.from_url(run.server.url) as thief:
        thief.delete("klong:{run}:segment:a:0")
    found, _ = await run.audit(lineage=[(1, 0)])
    assert [(crime.kind, crime.tokens) for crime in found.crimes] == [(LOST, 2)]
