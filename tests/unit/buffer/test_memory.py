"""The high-water mark: where it lies, when it is looked at, and what it says."""

from __future__ import annotations

import pytest

from klong_rl.buffer import memory
from klong_rl.buffer.memory import MIB, HighWaterMark


@pytest.mark.parametrize(
    "used_mb, limit_mb, waits",
    [(0, 0, False), (80, 0, False), (81, 0, True), (81, 1000, True), (40, 50, False), (41, 50, True)],
)
def test_new_episodes_wait_above_the_mark_of_the_lower_limit(used_mb: int, limit_mb: int, waits: bool) -> None:
    mark = HighWaterMark(memory_mb=100)
    mark.saw(used_mb * MIB, limit_mb * MIB)
    assert bool(mark.reason_to_wait()) is waits


def test_it_says_what_is_used_where_the_mark_is_and_what_to_do() -> None:
    mark = HighWaterMark(memory_mb=100)
    mark.saw(90 * MIB, 0)
    for part in ("uses 90 MB", "mark of 80 MB", "buffer.memory_mb=100", "raise buffer.memory_mb"):
        assert part in mark.reason_to_wait()
    mark.saw(10 * MIB, 0)
    assert mark.reason_to_wait() == ""


def test_a_look_is_due_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(memory.time, "monotonic", lambda: now)
    mark = HighWaterMark(memory_mb=100)
    assert [mark.look_is_due() for _ in range(3)] == [True, False, False]
    now += memory.LOOK_EVERY_S
    assert [mark.look_is_due() for _ in range(3)] == [True, False, False]


def test_without_a_share_there_is_no_mark() -> None:
    mark = HighWaterMark(memory_mb=0)
    assert not mark.look_is_due() and mark.reason_to_wait() == ""
