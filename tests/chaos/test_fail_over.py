"""A whole run on a Redis of the user's, whose master dies in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import redis_servers as servers
from tests.launched import containers_of

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_run_goes_on_at_the_master_that_sentinels_choose(launch, tmp_path: Path) -> None:
    with servers.pair(tmp_path) as (master, replica):
        for server in (master, replica):
            server.ask("ACL", "SETUSER", "klong", "on", ">secret", "~klong:*", "+@all")
        with servers.sentinels(tmp_path, master) as ports:
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            run = launch(f"buffer.url='redis+sentinel://klong:secret@{hosts}/klong'")
            run.wait_for("step 1/4", 240)
            master.kill()
            assert run.finish(240) == 0, run.output()
            assert replica.ask("ROLE")[0] == "master"
    assert "secret" not in run.output()
    steps = (tmp_path / "runs" / "mini" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 4
    run.wait_until_gone(10)
    assert containers_of(tmp_path / "runs" / "mini") == []
