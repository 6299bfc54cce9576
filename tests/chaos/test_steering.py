"""A live run is steered by every verb, under load; then each token of it is accounted for, as after kills."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from klong_rl.buffer import BufferAddress
from klong_rl.buffer.connection import Connection
from klong_rl.buffer.reader import Reader
from klong_rl.buffer.records import Counts, InProgress
from klong_rl.buffer.server import FOLDER
from klong_rl.buffer.socket_path import listening
from klong_rl.launch import run_id
from klong_rl.monitor.metrics import read_metrics
from tests.chaos.audit import audit
from tests.chaos.evidence import gather
from tests.launched import MINIATURE, ROOT, LaunchedRun

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

RUN_S = 600  # for what a run is waited for, on a busy machine
SECOND_STAGE = 8  # steps: it must not end before the run is drained in it
SETTINGS = (
    "actors.count=2",
    "actors.episodes=8",
    "rollout.groups_per_step=2",
    "rollout.group_size=4",
    "learner.checkpoint_every=3",
    "curriculum.stages=[{difficulty:4,timeout_s:60,max_turns:10,steps:60},"
    f"{{difficulty:6,timeout_s:60,max_turns:14,steps:{SECOND_STAGE}}}]",
)


@pytest.fixture
def root():
    """A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="klong-steer-") as folder:
        yield Path(folder)


class Steered:
    """One run, its launches, and what it answers."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.dir = root / "steered"
        self.overrides = (f"root={root}", "name=steered", f"cache={cache}", *MINIATURE, *SETTINGS)
        self.launches: list[LaunchedRun] = []

    def start(self) -> LaunchedRun:
        log = self.dir.parent / f"launch-{len(self.launches)}.log"
        self.launches.append(LaunchedRun(self.overrides, log).start())
        return self.launches[-1]

    def steer(self, verb: str, *arguments: str) -> str:
        """What the operator is told."""
        command = [sys.executable, "-m", "klong_rl.steer", verb, f"run={self.dir}", *arguments]
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S, env=dict(os.environ))
        assert asked.returncode == 0, f"{verb}: {asked.stderr}\n{self.launches[-1].output()[-2000:]}"
        return asked.stdout.strip()

    async def look(self) -> tuple[Counts, list[InProgress]]:
        connection = Connection(BufferAddress(listening(self.dir / FOLDER), run_id(self.dir), 10.0))
        try:
            reader = Reader(connection)
            return await reader.counts(), await reader.in_progress()
        finally:
            await connection.close()

    async def held_by(self, actor: str) -> list[InProgress]:
        """What a rollout actor runs, once it runs something."""
        until = time.monotonic() + RUN_S
        while True:
            held = [each for each in (await self.look())[1] if each.owner.startswith(f"{actor}.")]
            if any(each.state == "running" for each in held):
                return held
            assert time.monotonic() < until, f"{actor} runs nothing"


async def test_a_run_that_is_steered_by_every_verb_loses_nothing_and_trains_nothing_twice(root, model_cache):
    run = Steered(root, model_cache)
    launch = run.start()
    try:
        launch.wait_for("stage 1/2 step 1/", RUN_S)
        await run.held_by("rollout-1")
        assert run.steer("scale", "rollout=1") == "actors at work: rollout 1, judge 1"
        counts, under_way = await run.look()
        assert counts.requeues.get("its actor was stopped", 0) > 0, "it was under load"
        assert not any(each.owner.startswith("rollout-1.") and each.state == "running" for each in under_way)

        paused = run.steer("pause")
        assert paused.startswith("paused after step "), paused
        assert "checkpoint of step" in run.steer("snapshot")
        step = len(read_metrics(run.dir))
        time.sleep(5)
        assert len(read_metrics(run.dir)) <= step + 1, "no step is begun while it is paused"
        assert run.steer("resume").startswith("goes on after step ")
        assert run.steer("scale", "rollout=+1", "judge=2") == "actors at work: rollout 2, judge 2"
        assert run.steer("promote") == "stage 1 → 2, after the step under way"
        launch.wait_for("asked for by the operator", RUN_S)
        launch.wait_for("stage 2/2 step", RUN_S)
        assert run.steer("stop", "--drain").endswith("nothing under way")
        assert launch.finish(RUN_S) == 143, launch.output()[-2000:]

        launch = run.start()
        assert launch.finish(RUN_S) == 0, launch.output()[-2000:]
    finally:
        for each in run.launches:
            each.kill()
    metrics = read_metrics(run.dir)
    assert [each.step for each in metrics] == list(range(1, len(metrics) + 1))
    assert len(metrics) < 60 and [each.stage for each in metrics].count(2) == SECOND_STAGE
    verdict = audit(gather(run.dir, 1, len(metrics)))
    assert not verdict.crimes, verdict
    assert verdict.tokens["trained"] > 0
