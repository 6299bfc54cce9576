"""Which groups a run keeps going, on a real buffer: those of this stage, and what earlier ones left over."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from klong_rl.admission import Admission
from klong_rl.advantages import rloo
from klong_rl.buffer import Buffer, BufferAddress, Claim, EmbeddedRedis, StaleEpoch
from klong_rl.closing import REASON
from klong_rl.config import CloseEarlyConfig, RolloutConfig, StageConfig
from klong_rl.groups import windows_of
from klong_rl.pacing import Ahead
from klong_rl.supply import Supply
from klong_rl.tasks.relay import RelayTasks
from klong_rl.types import Outcome, Segment, Turn, Verdict

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


def supply(buffer: Buffer, config: RolloutConfig = ROLLOUT) -> Supply:
    return Supply(config, buffer, RelayTasks(), Admission(buffer, lambda text: None), Ahead(config))


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
    groups = supply(buffer, LONG_AHEAD)
    groups.begin(1, SHORT)
    for _ in range(3):
        await groups.admit(steps_left=99)
    assert await buffer.n_queued() == 4 * 2
    for _ in range(7):
        await buffer.claim("actor")
    await groups.admit(steps_left=99)
    assert await buffer.n_queued() == 1 + 4 * 2


def closing(late: str) -> RolloutConfig:
    rule = CloseEarlyConfig(members=2, patience=2.0, late=late)
    return RolloutConfig(groups_per_step=1, group_size=3, max_staleness=0, close_early=rule)


async def two_of_three_came_in(buffer: Buffer, groups: Supply) -> Claim:
    """The third runs for longer than twice the median of the others."""
    groups.begin(1, SHORT)
    await groups.admit(steps_left=9)
    first, second, third = [await buffer.claim("actor") for _ in range(3)]
    await asyncio.sleep(0.1)
    for claim in (first, second):
        await judge(buffer, claim, score=0.5)
    await asyncio.sleep(1.5)  # a look at late ones each second
    return third


async def judge(buffer: Buffer, claim: Claim, score: float) -> None:
    turn = Turn(
        index=0, context_start=0, action_A=np.array([7], np.int32), logprobs_A=np.array([-1.0], np.float32),
        versions=((0, 1),), observation_O=np.array([], np.int32),
    )  # fmt: skip
    segment = Segment(
        episode=claim.spec.id, epoch=claim.epoch, seq=0, turns=(turn,), prefix_P=np.array([1, 2], np.int32)
    )
    await buffer.append(claim.spec.id, claim.epoch, segment)
    await buffer.seal(claim.spec.id, claim.epoch, Outcome(kind="submitted"))
    await buffer.next_to_judge("judge")
    await buffer.verdict(claim.spec.id, claim.epoch, Verdict(score=score))


async def close(buffer: Buffer) -> dict[str, float]:
    """What is complete, as a judge closes it: advantage by episode."""
    group = await buffer.next_group_to_close()
    windows = windows_of(await buffer.group(group), rloo, came_in=await buffer.came_in(group))
    assert await buffer.close_group(group, windows) and {window.group for window in windows} == {group}
    return {window.episode: window.advantage for window in windows}


async def test_a_late_episode_is_trained_when_it_comes_against_those_that_came_in(buffer):
    groups = supply(buffer, closing("join"))
    late = await two_of_three_came_in(buffer, groups)
    await groups.admit(steps_left=9)
    assert await close(buffer) == {"s1-g0-e0": 0.0, "s1-g0-e1": 0.0}
    assert {ref.group for ref in await buffer.lease(1, 1, 0)} == {"s1-g0"}
    assert groups.metrics() == {"groups_closed_early": 1, "episodes_late": 1}

    again = supply(buffer, closing("join"))  # a driver that was started again
    await again.find()
    again.begin(1, SHORT)
    await asyncio.sleep(1.0)
    await again.admit(steps_left=9)
    under_way = sorted(each.group for each in await buffer.in_progress())
    assert under_way == ["s1-g0-late"] + 3 * ["s1-g1"], "it doesn't count as ahead"
    await judge(buffer, late, score=1.0)
    assert await close(buffer) == {"s1-g0-e2": 0.5}
    assert await buffer.lease(2, 1, 0) == [], "no step waits for it, or is made of it alone"
    for claim in [await buffer.claim("actor") for _ in range(3)]:
        await judge(buffer, claim, score=0.5)
    await close(buffer)
    assert {ref.group for ref in await buffer.lease(2, 1, 0)} == {"s1-g0-late", "s1-g1"}
    await buffer.commit(2)
    for group in ("s1-g0-late", "s1-g0"):  # whichever is archived first
        assert await buffer.forget(group)
        again.begin(1, SHORT)
        await again.admit(steps_left=9)
    assert {each.group for each in await buffer.in_progress()} == {"s1-g2"}


async def test_or_it_is_dropped_and_says_so(buffer):
    groups = supply(buffer, closing("drop"))
    late = await two_of_three_came_in(buffer, groups)
    await groups.admit(steps_left=9)
    assert await close(buffer) == {"s1-g0-e0": 0.0, "s1-g0-e1": 0.0}
    assert (await buffer.counts()).drops == {REASON: 1}
    with pytest.raises(StaleEpoch):
        await buffer.seal(late.spec.id, late.epoch, Outcome(kind="submitted"))
