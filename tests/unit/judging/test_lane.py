"""Which request goes next, and when: urgency, rate, bound, back-off."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.judging.lane import CATCH_UP_S, FIRST_DELAY_S, LONGEST_DELAY_S, Lane, Urgency, delay_s

EVAL, UNBLOCKS, OPEN = Urgency(False, False, 9), Urgency(True, False, 5), Urgency(True, True, 1)


def drained(lane: Lane, now: float = 0.0) -> list:
    """What goes, one after the other, each over before the next."""
    gone = []
    while (at := lane.opens_at(now)) is not None:
        now = at
        gone.append(lane.take(now))
        lane.release()
    return gone


def lane_with(*groups, rate=1000.0, concurrent=1) -> Lane:
    lane = Lane(rate, concurrent)
    for name, urgency in groups:
        lane.rank(name, urgency)
        for i in range(2):
            lane.push(f"{name}{i}", name)
    return lane


def test_evaluation_then_what_unblocks_a_group_then_as_admitted():
    later = Urgency(True, False, 6)
    lane = lane_with(("late", later), ("open", OPEN), ("unblocks", UNBLOCKS), ("eval", EVAL))
    order = ["eval", "unblocks", "late", "open"]
    assert drained(lane) == [f"{name}{i}" for name in order for i in range(2)]


def test_urgency_that_changes_holds_for_what_waits_already():
    lane = lane_with(("a", UNBLOCKS), ("b", OPEN))
    lane.rank("b", EVAL)
    assert drained(lane) == ["b0", "b1", "a0", "a1"]


def test_a_group_that_was_never_ranked_comes_last():
    lane = Lane(1000, 1)
    lane.push("unknown", "x")
    lane.rank("y", OPEN)
    lane.push("known", "y")
    assert drained(lane) == ["known", "unknown"]


def test_no_more_under_way_than_the_bound():
    lane = lane_with(("a", UNBLOCKS), concurrent=1)
    assert lane.take(0.0) == "a0"
    assert lane.take(9.0) is None and lane.opens_at(9.0) is None
    lane.release()
    assert lane.take(9.0) == "a1"


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "rank", "take", "withdraw"]), st.integers(0, 3), st.integers(0, 4)),
        max_size=60,
    )
)
def test_it_is_always_the_first_of_the_most_urgent_group_whatever_came_before(moves):
    """Against the plain rule: the least (urgency, first to come) of all that may go by now."""
    lane, urgency, tickets, numbers = Lane(1e9, 999), {}, {}, itertools.count()
    for now, (move, group, n) in enumerate(moves):
        if move in ("push", "rank"):  # the lane hears of no group by other moves
            urgency.setdefault(group, [(math.inf,), now])
        if move == "push":
            ticket = next(numbers)
            tickets[ticket] = (group, now + n)
            lane.push(ticket, group, now + n)
        elif move == "rank":
            urgency[group][0] = (n,)
            lane.rank(group, (n,))
        elif move == "withdraw" and tickets:
            ticket = list(tickets)[n % len(tickets)]
            lane.withdraw(ticket, tickets.pop(ticket)[0])
        ready = [ticket for ticket, (_, at) in tickets.items() if at <= now]
        best = min(ready, key=lambda ticket: (*urgency[tickets[ticket][0]], ticket), default=None)
        assert (lane.opens_at(float(now)) == now) == (best is not None)
        if move == "take":
            assert lane.take(float(now)) == best
            tickets.pop(best, None)
        assert lane.waiting == len(tickets)


def test_what_is_withdrawn_never_goes():
    lane = lane_with(("a", UNBLOCKS))
    lane.withdraw("a0", "a")
    lane.withdraw("a0", "a")
    assert drained(lane) == ["a1"] and lane.waiting == 0


def test_a_retry_waits_for_its_time_and_lets_others_pass():
    lane = lane_with(("a", UNBLOCKS), concurrent=9)
    lane.push("retried", "b", not_before=5.0)
    lane.rank("b", EVAL)
    assert lane.take(0.0) == "a0"
    assert lane.take(1.0) == "a1"
    assert lane.take(2.0) is None and lane.opens_at(2.0) == 5.0
    assert lane.take(5.0) == "retried"


def test_nothing_goes_while_the_endpoint_has_too_much():
    lane = lane_with(("a", EVAL))
    lane.hold(7.0)
    assert lane.take(6.9) is None and lane.opens_at(1.0) == 7.0
    assert lane.take(7.0) == "a0"


def test_a_group_that_waits_is_not_forgotten():
    lane = lane_with(("a", UNBLOCKS), ("b", OPEN))
    lane.forget("a")
    assert drained(lane)[0] == "a0"


@given(st.lists(st.floats(0, 0.3), min_size=2, max_size=60), st.sampled_from([1.0, 7.0, 20.0]))
def test_the_rate_holds_over_any_stretch_of_time(pauses, rate):
    lane, now, gone = Lane(rate, 1000), 0.0, []
    for i in range(len(pauses) * 8):
        lane.push(i, "g")
    for pause in pauses:
        now += pause
        while lane.take(now) is not None:
            gone.append(now)
    for i, first in enumerate(gone):
        for n, last in enumerate(gone[i:], 1):
            assert n <= (last - first + CATCH_UP_S) * rate + 1 + 1e-6


@pytest.mark.parametrize("failures, bound", [(1, FIRST_DELAY_S), (2, 2 * FIRST_DELAY_S), (50, LONGEST_DELAY_S)])
def test_back_off_doubles_up_to_a_bound_and_is_jittered(failures, bound):
    delays = {delay_s(failures, 0.0, random.Random(i)) for i in range(50)}
    assert len(delays) > 40 and bound / 2 <= min(delays) and max(delays) <= bound


def test_what_the_endpoint_asks_for_is_waited_for():
    assert delay_s(1, 60.0, random.Random(0)) == 60.0


def test_other_bounds_hold_from_then_on():
    lane = lane_with(("a", UNBLOCKS), ("b", UNBLOCKS), rate=1000.0, concurrent=1)
    assert lane.take(1.0) is not None and lane.take(1.1) is None
    lane.bound(requests_per_s=1.0, concurrent=3)
    assert lane.take(1.2) is not None
    assert lane.take(1.3) is None, "one a second"
    assert lane.take(2.3) is not None and lane.take(9.0) is None, "three at once"
