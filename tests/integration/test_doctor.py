"""The doctor on this machine, and on two Ray nodes."""

import pytest

from klong_rl.machine.checks import examine
from klong_rl.machine.gather import _redis_at, gather
from klong_rl.machine.nodes import gather_nodes
from klong_rl.machine.pair import try_pair

pytestmark = pytest.mark.integration


def test_what_runs_the_tests_is_found(tmp_path):
    facts = gather(str(tmp_path / "not" / "there" / "yet"), "klong-sandbox", pair=False)
    found = {finding.check: finding for finding in examine(facts)}
    assert {found[name].status for name in ("python", "packages", "versions", "redis")} == {"ok"}
    assert len(facts.requirements) > 3 and facts.memory > 0 and facts.disk_free > 0


@pytest.mark.slow  # a Redis is waited for
def test_an_image_and_a_redis_that_are_not_there_are_told(tmp_path):
    facts = gather(str(tmp_path), "klong-no-such-image", f"unix://{tmp_path}/none.sock", pair=False)
    found = {finding.check: finding for finding in examine(facts)}
    assert found["docker"].status == "warn" and "klong-no-such-image" in found["docker"].says
    assert found["redis"].status == "fail" and "\n" not in found["redis"].says


def test_a_url_that_no_redis_has_is_told():
    assert "redis" in _redis_at("http://r").error


@pytest.mark.slow
def test_two_processes_add_up(tmp_path):
    found = try_pair("gloo")
    assert found.error == "" and found.gb_per_s > 0
    assert "nonsense" in try_pair("nonsense").error.lower()


@pytest.mark.slow
def test_each_node_of_a_cluster_is_asked(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        found = gather_nodes(cluster.address, folder=str(tmp_path), image="klong-sandbox", pair=False)
    finally:
        cluster.shutdown()
    assert len(found) == 2 and all(facts.versions["ray"] for facts in found.values())
    (clocks,) = [facts.clocks for facts in found.values() if facts.clocks]
    assert len(clocks) == 2 and all(abs(clock.ahead_s) < 1 for clock in clocks)
