"""Which groups a run keeps going, on a real buffer: those of this stage, and what earlier ones left over."""

import asyncio
from pathlib import Path

import pytest

from klong_rl.admission import Admission
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.config import RolloutConfig, StageConfig
from klong_rl.pacing import Ahead
from klong_rl.supply import Supply
from klong_rl.tasks.relay import RelayTasks
from klong_rl.types import Outcome, Verdict

pytestmark = pytest.mark.integration

SHORT, LONG = (
    StageConfig(difficulty=2, timeout_s=9.0, max_turns=4),
    StageConfig(difficulty=4, timeout_s=99.0, max_turns=8),
)
LONG_AHEAD = RolloutConfig(groups_per_step=2, group_size=2, max_staleness=9)
ROLLOUT = RolloutConfig(groups_per_step=1, group_size=2, max_staleness=1)


@pytest.fixture
async def buffer(tmp_path: Path):
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            yield buffer


def supply(buffer: Buffer) -> Supply:
    return Supply(ROLLOUT, buffer, RelayTasks(), Admission(buffer, lambda text: None), Ahead(ROLLOUT))


async def finish(buffer: Buffer, forget: bool = True) -> str:
    """The next group, from claim to closed, or forgotten."""
    for _ in range(ROLLOUT.group_size):
        claim = await buffer.claim("actor")
        await buffer.seal(claim.spec.id, claim.epoch, Outcome(kind="submitted"))
        await buffer.next_to_judge("judge")
        await buffer.verdict(claim.spec.id, claim.epoch, Verdict(score=1.0))
    await buffer.close_group(claim.spec.group, [])
    if forget:
        await buffer.forget(claim.spec.group)
    return claim.spec.group


async def test_at_a_promotion_what_runs_is_extended_and_what_is_archived_is_passed_over(buffer):
    groups = supply(buffer)
    groups.begin(1, SHORT)
    await groups.admit(steps_left=9)
    assert await finish(buffer) == "s1-g0"
    await groups.extend(LONG)
    claim = await buffer.claim("actor")
    assert (claim.spec.group, claim.spec.timeout_s, claim.spec.max_turns) == ("s1-g1", 99.0, 8)


async def test_what_an_earlier_stage_left_over_counts_as_sampled_ahead(buffer):
    first = supply(buffer)
    first.begin(1, SHORT)
    await first.admit(steps_left=9)
    again = supply(buffer)  # of another life of the learner
    await again.find()
    again.begin(2, LONG)
    await again.admit(steps_left=9)
    assert {episode.group for episode in await buffer.in_progress()} == {"s1-g0", "s1-g1"}
    await finish(buffer)
    await again.admit(steps_left=9)
    assert {episode.group for episode in await buffer.in_progress()} == {"s1-g1", "s2-g0"}


async def test_how_long_a_group_took_is_known_once_it_is_leased(buffer):
    groups = supply(buffer)
    groups.begin(1, SHORT)
    await groups.admit(steps_left=9)
    await asyncio.sleep(0.2)
    await finish(buffer, forget=False)
    (took_s,) = groups.leased({"s1-g0": await buffer.results("s1-g0")})
    assert 0.1 < took_s < 5
    assert groups.leased({"s1-g0": await buffer.results("s1-g0"), "s0-g7": []}) == []


async def test_no_more_episodes_wait_for_a_slot_than_two_steps_take(buffer):
    groups = Supply(LONG_AHEAD, buffer, RelayTasks(), Admission(buffer, lambda text: None), Ahead(LONG_AHEAD))
    groups.begin(1, SHORT)
    for _ in range(3):
        await groups.admit(steps_left=99)
    assert await buffer.n_queued() == 4 * 2
    for _ in range(7):
        await buffer.claim("actor")
    await groups.admit(steps_left=99)
    assert await buffer.n_queued() == 1 + 4 * 2
