"""What the driver tells of its fleet."""

from klong_rl.dashboard.fleet import FleetHistory
from klong_rl.monitor.fleet_file import FleetFile, Rates, read_fleet, sandboxes_of
from klong_rl.pacing import EngineLook


def look(actor, sampled):
    return EngineLook(actor=actor, episodes=2, ended=5, fits=8, waiting=1, kv_use=0.5, paused_s=0.0, sampled=sampled)


def test_rates_are_by_actor_and_a_new_life_begins_at_nothing():
    rates = Rates()
    assert rates.of({"a": 100}, 10.0) == {"a": 0.0}
    assert rates.of({"a": 150, "b": 9}, 12.0) == {"a": 25.0, "b": 0.0}
    assert rates.of({"a": 10, "b": 10}, 13.0) == {"a": 0.0, "b": 1.0}


def test_sandboxes_are_added_up_by_host_and_state():
    of_two = {"h1": {"held": 2, "ahead": 3}, "h2": {"held": 1, "ahead": 0}}
    found = sandboxes_of([("running", of_two), ("running", {"h1": {"held": 1}}), ("judging", {"h1": {"held": 4}})])
    counts = {(line["host"], line["state"]): line["count"] for line in found}
    assert counts == {
        ("h1", "running"): 3,
        ("h1", "ahead"): 3,
        ("h1", "judging"): 4,
        ("h2", "running"): 1,
        ("h2", "ahead"): 0,
    }


def test_what_is_written_is_read_and_followed(tmp_path):
    assert read_fleet(tmp_path) == {}
    file, history = FleetFile(tmp_path), FleetHistory(tmp_path)
    for sampled in (0, 50):
        status = {"engines": [look("r.1", sampled)], "sandboxes": []}
        file.write(status, {"r.1": 4}, {"pacing_slots": 4.0}, "sampling", 2)
        history.take(read_fleet(tmp_path))
        history.take(read_fleet(tmp_path))
    assert read_fleet(tmp_path)["pacing"] == {"pacing_slots": 4.0}
    told = history.as_json()
    assert told["up"] and told["now"]["phase"] == "sampling" and told["now"]["engines"][0]["slots"] == 4
    assert told["engines"]["r.1"]["kv_use"] == [0.5, 0.5] and told["engines"]["r.1"]["tokens_per_s"][1] > 0


def test_a_file_that_a_driver_left_is_not_up(tmp_path):
    history = FleetHistory(tmp_path)
    history.take({"at": 1.0, "engines": []})
    assert not history.is_fresh() and history.as_json()["now"]["at"] == 1.0
