"""When a group is closed before its last episodes have ended."""

from hypothesis import given
from hypothesis import strategies as st

from klong_rl.buffer.records import Age
from klong_rl.closing import is_overdue, is_rest, rest_of
from klong_rl.config import CloseEarlyConfig
from klong_rl.schedule import stage_of

RULE = CloseEarlyConfig(members=3, patience=2.0)


def ages(*members: tuple[str, float]) -> list[Age]:
    return [Age(f"e{i}", state, seconds) for i, (state, seconds) in enumerate(members)]


CAME_IN = [("judged", 10.0), ("judged", 20.0), ("judged", 30.0)]


def test_once_enough_came_in_and_the_others_ran_far_longer():
    assert is_overdue(ages(*CAME_IN, ("running", 40.1)), RULE)
    assert is_overdue(ages(*CAME_IN, ("running", 50.0), ("sealed", 41.0)), RULE)
    assert not is_overdue(ages(*CAME_IN, ("running", 39.9)), RULE)
    assert not is_overdue(ages(*CAME_IN, ("running", 50.0), ("sealed", 39.0)), RULE), "all of them"
    assert not is_overdue(ages(*CAME_IN[:2], ("running", 900.0)), RULE), "a baseline of too few"


def test_a_group_waits_for_what_has_not_begun_and_needs_no_closing_where_nothing_is_late():
    assert not is_overdue(ages(*CAME_IN, ("running", 90.0), ("queued", 0.0)), RULE)
    assert is_overdue(ages(*CAME_IN, ("queued", 90.0)), RULE), "given back, and long since begun"
    assert not is_overdue(ages(*CAME_IN, ("dropped", 900.0)), RULE)


@given(st.lists(st.tuples(st.sampled_from(["queued", "running", "judged"]), st.floats(0, 1e6)), max_size=9))
def test_it_is_off_by_default(members):
    assert not is_overdue(ages(*members), CloseEarlyConfig())


def test_the_rest_of_a_group_is_of_its_stage():
    assert is_rest(rest_of("s2-g41")) and not is_rest("s2-g41")
    assert stage_of(rest_of("s2-g41")) == 2
