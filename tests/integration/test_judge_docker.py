"""Hidden tests in Docker: graded in a fresh container of the snapshot, and again from the one that was kept."""

from __future__ import annotations

import json
import uuid
from contextlib import asynccontextmanager
from dataclasses import asdict

import pytest

from klong_rl import rejudge
from klong_rl.blocking import in_thread
from klong_rl.config import JudgeConfig, RunConfig
from klong_rl.judging.grader import Grader
from klong_rl.judging.record import Records
from klong_rl.judging.store import Store
from klong_rl.launch import run_id
from klong_rl.types import Limits
from sandboxes.docker import DockerSandboxes
from tests.judged import finished, reward

pytestmark = pytest.mark.integration

IMAGE = "klong-sandbox"
TESTS = reward("tests.hidden_tests")
# What an agent may leave so that tests pass that shouldn't: a program before the real one, and a shell that says yes.
TRICK = "mkdir b; printf '#!/bin/sh\nexit 0' > b/sh; chmod +x b/sh; export PATH=/work/b:$PATH; test() { true; }"


async def test_hidden_tests_in_docker_and_again_from_the_kept_snapshot(tmp_path):
    run_dir = tmp_path / f"run-{uuid.uuid4().hex[:8]}"
    run_dir.mkdir()
    config = RunConfig(name="r", reward=TESTS, judge=JudgeConfig(keep_snapshots=True))
    (run_dir / "config.json").write_text(json.dumps(asdict(config)))
    sandboxes, store = DockerSandboxes(run_id(run_dir)), Store(run_dir)
    grader = Grader(config.judge, TESTS, store, Records(store.folder / "records"))

    @asynccontextmanager
    async def fresh(image):
        made = await sandboxes.create("e/grading", 1, image, Limits())
        yield made
        await made.close()

    try:
        sandbox = await sandboxes.create("e", 1, IMAGE, Limits())
        await sandbox.exec(f"echo 4 > total; {TRICK}", timeout_s=5)

        async def left():
            return sandbox

        secret = {"files": {"hidden/check.sh": "test $(cat total) = 5"}}
        tests = {"five": "sh hidden/check.sh", "four": "test $(cat total) = 4"}
        graded = await grader.grade(finished("e", tests=tests, **secret), 1, left, fresh)
        assert graded.verdict.parts == {"five": 0, "four": 1, "solved": 0}
        await sandbox.close()
        await sandboxes.forget_snapshots("e", keep=graded.kept_snapshot)
        assert await in_thread(rejudge.main, [f"run={run_dir}"]) == 0
        (line,) = (run_dir / "judging" / "rejudged" / "hidden_tests.jsonl").read_text().splitlines()
        assert (json.loads(line)["was"], json.loads(line)["score"]) == (0.5, 0.5)
        assert await sandboxes.reap(set(), snapshots=True) == ["e"], (
            "the kept snapshot, and nothing of the judging again"
        )
    finally:
        await grader.close()
        await sandboxes.reap(set())
        await sandboxes.close()
