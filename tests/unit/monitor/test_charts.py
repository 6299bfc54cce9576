"""Geometry: what is larger is drawn higher, ticks hold the data, stages meet, nothing leaves the frame."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.monitor.charts import BOTTOM, LEFT, MAX_HOVERS, TOP, Band, Chart, Series, decade_ticks, nice_ticks, plot

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def chart(*rows, **fields) -> Chart:
    series = tuple(Series(f"s{i}", i + 1, row) for i, row in enumerate(rows))
    return Chart("title", "note", series, "{:g}".format, **fields)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


@given(VALUES, st.sampled_from(["linear", "log"]))
def test_every_point_is_inside_the_frame_and_order_is_kept(values, scale):
    drawn = plot(chart(values, scale=scale), range(1, len(values) + 1), [])
    line = points(drawn.lines[0][0])
    assert len(line) == len(values)
    for (x, y), value in zip(line, values, strict=True):
        assert LEFT <= x <= drawn.chart.right and TOP <= y <= BOTTOM
        assert all(other <= y for (_, other), larger in zip(line, values, strict=True) if larger > value)


@given(st.floats(1e-6, 1e9), st.booleans())
def test_linear_ticks_reach_the_top_and_are_few(top, whole):
    ticks = nice_ticks(top, whole)
    assert ticks[0] == 0 and ticks[-1] >= top * (1 - 1e-9) and 2 <= len(ticks) <= 7
    assert not whole or all(tick == round(tick) for tick in ticks)


@given(st.floats(1e-9, 1e9), st.floats(1, 1e9))
def test_decade_ticks_hold_the_range_and_are_few(low, factor):
    ticks = decade_ticks(low, low * factor)
    assert ticks[0] <= low * (1 + 1e-6) and ticks[-1] >= low * factor * (1 - 1e-6) and 2 <= len(ticks) <= 6


def test_no_movement_is_still_a_picture():
    drawn = plot(chart([0.0, 0.0]), range(1, 3), [])
    assert {y for _, y in points(drawn.lines[0][0])} == {BOTTOM}


def test_a_stack_ends_at_the_sum():
    drawn = plot(chart([1.0, 1.0], [2.0, 3.0], kind="stack"), range(1, 3), [])
    assert drawn.y_ticks[-1][1] == "4"
    assert points(drawn.lines[1][0])[-1][1] == TOP
    assert len(drawn.areas) == 2


def test_stages_meet_where_the_next_begins():
    drawn = plot(chart([0.0] * 10), range(1, 11), [Band("a", 0, 3), Band("b", 4, 9)])
    (left_a, width_a, _), (left_b, width_b, _) = drawn.bands
    assert left_a == LEFT and left_a + width_a == left_b and left_b + width_b == drawn.chart.right


def test_ticks_are_round_steps_and_hovers_say_what_is_there():
    drawn = plot(chart([0.25] * 12, [4.0] * 12), range(1, 13), [])
    assert [label for _, label in drawn.x_ticks] == ["2", "4", "6", "8", "10", "12"]
    assert drawn.hovers[4].title == "step 5"
    assert drawn.hovers[4].rows == ((1, "s0", "0.25"), (2, "s1", "4"))


@pytest.mark.parametrize("steps", [1, 2, 299, 300, 301, 5000])
def test_hovers_are_bounded_and_cover_the_steps(steps):
    drawn = plot(chart([1.0] * steps), range(1, steps + 1), [])
    assert 1 <= len(drawn.hovers) <= MAX_HOVERS
    gaps = [b.left - (a.left + a.width) for a, b in zip(drawn.hovers, drawn.hovers[1:], strict=False)]
    assert all(gap < 0.1 for gap in gaps)
