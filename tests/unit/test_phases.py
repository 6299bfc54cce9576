"""Phases follow one another without a gap; of several who go through them at once the slowest counts."""

from klong_rl import phases
from klong_rl.phases import Phases, slowest


def test_each_phase_lasts_from_the_end_of_the_one_before(monkeypatch):
    clock = iter([10.0, 10.5, 13.0])
    monkeypatch.setattr(phases.time, "monotonic", lambda: next(clock))
    made = Phases()
    made.end("pause_s")
    made.end("load_s")
    assert made.seconds == {"pause_s": 0.5, "load_s": 2.5}


def test_the_slowest_of_each_phase_counts():
    assert slowest([{"pause_s": 1.0, "load_s": 2.0}, {"pause_s": 3.0}]) == ({"pause_s": 3.0, "load_s": 2.0})
    assert slowest([]) == {}
