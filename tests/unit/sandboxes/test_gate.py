"""How much is asked of a daemon at a time."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.failures import InfrastructureFailure
from sandboxes import gate
from sandboxes.gate import Gate, Pace

SECONDS = st.floats(0.01, 120)


@given(st.integers(1, 64), st.lists(st.one_of(SECONDS, st.none())))
def test_the_bound_stays_between_one_and_the_most_whatever_the_daemon_does(most, story):
    pace = Pace(most)
    for now, seconds in enumerate(story):
        pace.failed(now) if seconds is None else pace.done(seconds)
        assert 1 <= pace.limit <= most


@given(st.integers(2, 64), st.floats(0.05, 1))
def test_a_daemon_that_slows_down_is_asked_for_less_and_one_that_recovers_for_as_much_as_before(most, quick_s):
    pace = Pace(most)
    pace.done(quick_s)
    pace.done(gate.SLOW_TIMES * quick_s + gate.SLOW_S)
    assert pace.limit == max(1, most // 2)
    for _ in range(most * most):
        pace.done(quick_s)
    assert pace.limit == most


def test_failures_in_a_row_make_the_rest_longer_up_to_a_bound_and_a_success_ends_that():
    pace = Pace(4)
    rests = []
    for _ in range(10):
        pace.failed(100.0)
        rests.append(pace.rests_until - 100.0)
    assert rests[:3] == [1, 2, 4] and rests[-1] == gate.REST_AT_MOST_S
    pace.done(0.1)
    pace.failed(200.0)
    assert pace.rests_until == 201.0


async def test_no_more_pass_at_a_time_than_the_bound_and_in_the_order_they_came():
    a_gate, inside, order, most_inside = Gate(2), 0, [], 0

    async def pass_through(number):
        nonlocal inside, most_inside
        async with a_gate.turn():
            order.append(number)
            inside += 1
            most_inside = max(most_inside, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(pass_through(number) for number in range(7)))
    assert order == list(range(7)) and most_inside == 2


async def test_who_is_cancelled_in_the_queue_or_inside_leaves_no_place_taken():
    a_gate, entered = Gate(1), []

    async def pass_through(number, seconds):
        async with a_gate.turn():
            entered.append(number)
            await asyncio.sleep(seconds)

    tasks = [asyncio.create_task(pass_through(number, 60 if number < 2 else 0)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    tasks[0].cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(*tasks, return_exceptions=True)
        await pass_through(4, 0)
    assert entered == [0, 2, 3, 4]


async def test_who_is_cancelled_as_its_turn_comes_passes_it_on():
    a_gate, entered = Gate(1), []

    async def pass_through(number):
        async with a_gate.turn():
            entered.append(number)

    async with a_gate.turn():
        tasks = [asyncio.create_task(pass_through(number)) for number in range(2)]
        await asyncio.sleep(0)
    tasks[0].cancel()  # admitted a moment ago
    async with asyncio.timeout(1):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert entered == [1]


async def test_spare_work_leaves_half_to_episodes_waits_while_they_queue_and_rests_after_a_failure():
    a_gate = Gate(4)
    assert a_gate.spare == 2
    async with a_gate.turn(), a_gate.turn(), a_gate.turn():
        assert a_gate.spare == 2
        async with a_gate.turn():
            assert a_gate.spare == 0
    with pytest.raises(InfrastructureFailure):
        async with a_gate.turn():
            raise InfrastructureFailure("refused")
    assert a_gate.spare == 0 and a_gate.pace.rests_until > time.monotonic()
