"""The rivals of benchmarks.async_vs_sync are what they say: which groups they have going, on a real buffer."""

from pathlib import Path

import pytest

from benchmarks.slow_tools import BatchSupply
from klong_rl.admission import Admission
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.config import RolloutConfig, StageConfig
from klong_rl.pacing import Ahead
from klong_rl.supply import Supply
from klong_rl.tasks.relay import RelayTasks
from klong_rl.types import Outcome, Verdict
from tests.episodes import segment, window

pytestmark = pytest.mark.integration

STAGE = StageConfig(difficulty=2, timeout_s=9.0, max_turns=4)


@pytest.fixture
async def buffer(tmp_path: Path):
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            yield buffer


def supply(kind: type[Supply], buffer: Buffer, max_staleness: int) -> Supply:
    rollout = RolloutConfig(groups_per_step=2, group_size=2, max_staleness=max_staleness)
    made = kind(rollout, buffer, RelayTasks(), Admission(buffer, lambda text: None), Ahead(rollout))
    made.begin(1, STAGE)
    return made


async def finish(buffer: Buffer, groups: int) -> None:
    """The next ones, up to windows that are ready."""
    for _ in range(groups):
        for _ in range(2):
            claim = await buffer.claim("actor")
            await buffer.append(claim.spec.id, claim.epoch, segment(claim.spec.id, 0))
            await buffer.seal(claim.spec.id, claim.epoch, Outcome(kind="submitted"))
            await buffer.next_to_judge("judge")
            await buffer.verdict(claim.spec.id, claim.epoch, Verdict(score=1.0))
        await buffer.close_group(claim.spec.group, [window(claim.spec.group, 0)])


async def running(buffer: Buffer) -> set[str]:
    return {episode.group for episode in await buffer.in_progress()}


async def test_one_step_off_begins_a_step_s_groups_together_once_those_before_are_done(buffer):
    batches = supply(BatchSupply, buffer, max_staleness=1)
    await batches.admit(steps_left=9)
    assert await running(buffer) == {"s1-g0", "s1-g1"}
    await finish(buffer, 1)
    await batches.admit(steps_left=9)
    assert await running(buffer) == {"s1-g1"}, "one of two is done: the next step's wait"
    await finish(buffer, 1)
    await batches.admit(steps_left=9)
    assert await running(buffer) == {"s1-g2", "s1-g3"}, "sampled while g0 and g1 are trained"
    await finish(buffer, 2)
    assert len({ref.group for ref in await buffer.lease(1, 2, oldest_version=0)} & {"s1-g0", "s1-g1"}) == 2
    await batches.admit(steps_left=1)
    assert await running(buffer) == set(), "the last step's groups are there"


async def test_with_no_staleness_nothing_is_sampled_ahead(buffer):
    synchronous = supply(Supply, buffer, max_staleness=0)
    await synchronous.admit(steps_left=9)
    assert await running(buffer) == {"s1-g0", "s1-g1"}
    await finish(buffer, 2)
    await synchronous.admit(steps_left=9)
    assert await running(buffer) == set(), "they are not trained yet"
    await buffer.lease(1, 2, oldest_version=0)
    await synchronous.admit(steps_left=8)
    assert await running(buffer) == {"s1-g2", "s1-g3"}
