"""The rules in virtual time: what must hold of a run holds, and pacing does better than what it is compared with."""

import pytest

from benchmarks.fleet_controller import Fleet
from benchmarks.fleet_simulation import measure, policies, rollout_of
from benchmarks.fleet_world import Engine, Events, World, speed

SMALL = World(sandboxes=100, steps=6)


@pytest.mark.parametrize("name", ["klong_rl", "klong_rl, closing early"])
def test_a_run_trains_within_the_bounds_to_its_end(name):
    policy = policies(SMALL)[name]
    rollout = rollout_of(SMALL, policy)
    fleet = Fleet(SMALL, *policy.pace(SMALL, rollout), rollout)
    fleet.run()
    assert fleet.step == 3 * SMALL.steps and fleet.curriculum.finished
    assert max(fleet.samples["staleness_max"]) <= policy.max_staleness
    assert max(fleet.samples["running"]) <= 1.0
    counts = fleet.rules.window_counts
    assert counts["consumed"] == fleet.trained_windows
    judged = sum(fleet.rules.outcomes["train"].values())
    assert judged >= fleet.step * rollout.groups_per_step * (policy.close_early.members or rollout.group_size)
    assert (fleet.supply.metrics().get("groups_closed_early", 0) > 0) == bool(policy.close_early.members)


def test_pacing_trains_more_than_a_batch_at_a_time_or_what_surely_fits():
    rate = {name: measure(SMALL, policy)["trained_windows_per_h"] for name, policy in policies(SMALL).items()}
    assert rate["klong_rl"] > 2 * rate["one batch at a time"]
    assert rate["klong_rl"] > rate["what surely fits"]


def test_an_engine_is_slower_the_more_it_has_and_wastes_work_once_its_cache_is_full():
    rates = [n * speed(SMALL, n)[0] for n in range(1, 40)]
    best = rates.index(max(rates))
    assert rates[: best + 1] == sorted(rates[: best + 1]) and rates[-1] < 0.8 * max(rates)
    assert speed(SMALL, 4)[1] == 0 and speed(SMALL, 30)[1] > 5


def test_an_engine_shares_its_speed_and_tells_what_was_worked():
    events, over = Events(), []
    engine = Engine("e", SMALL, events, lambda episode: over.append((episode, events.now, engine.end(episode))))
    engine.begin("long", 100.0)
    engine.begin("short", 50.0)
    events.run(lambda: len(over) == 2)
    (_, first_at, first), (_, second_at, second) = over
    assert [episode for episode, _, _ in over] == ["short", "long"]
    assert (first, second) == pytest.approx((50.0, 100.0))
    assert first_at == pytest.approx(50 / speed(SMALL, 2)[0])
    assert second_at == pytest.approx(first_at + 50 / speed(SMALL, 1)[0])
