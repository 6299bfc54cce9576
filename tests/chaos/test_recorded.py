"""Deterministic mode: on recorded rollouts, a killed learner ends with the weights of an undisturbed one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from klong_rl.ledger import read_ledger
from klong_rl.monitor.metrics import read_metrics
from tests.launched import LaunchedRun

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WHOLE_RUN_S = 600.0
STEPS = 8
CURRICULUM = (
    "curriculum.stages=[{difficulty:1,timeout_s:20,max_turns:2,steps:4},"
    "{difficulty:2,timeout_s:30,max_turns:3,steps:4}]",
    "learner.checkpoint_every=3",
)


def finished(run: LaunchedRun, run_dir: Path) -> Path:
    assert run.finish(WHOLE_RUN_S) == 0, run.output()[-3000:]
    assert [m.step for m in read_metrics(run_dir)] == list(range(1, STEPS + 1))
    return run_dir


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / f"step-{STEPS:06d}" / "hf" / "model.safetensors").read_bytes()


def kill_a_rank_after_step(run: LaunchedRun, run_dir: Path, step: int) -> None:
    until = time.monotonic() + WHOLE_RUN_S
    while len(read_metrics(run_dir) if run_dir.exists() else []) < step:
        assert run.process.poll() is None and time.monotonic() < until, run.output()[-3000:]
        time.sleep(0.02)
    run.kill_process("ray::Rank")


def test_a_killed_learner_comes_back_bit_for_bit(launch, tmp_path):
    runs = tmp_path / "runs"
    recording = finished(launch("name=recording", *CURRICULUM), runs / "recording")
    replay = (*CURRICULUM, f"rollout.recorded={recording / 'archive'}", f"rollout.max_staleness={STEPS}")

    undisturbed = finished(launch("name=undisturbed", *replay), runs / "undisturbed")

    run = launch("name=killed", *replay)
    kill_a_rank_after_step(run, runs / "killed", 2)  # before the first checkpoint: all of it is trained again
    run.wait_for("a new learner goes on after step 0", WHOLE_RUN_S)
    kill_a_rank_after_step(run, runs / "killed", 5)  # two steps after one
    run.wait_for("a new learner goes on after step ", WHOLE_RUN_S)
    killed = finished(run, runs / "killed")
    assert run.output().count("a new learner goes on after step") == 2, "each fault fired"

    assert [step.groups for step in read_ledger(killed)] == [step.groups for step in read_ledger(undisturbed)]
    assert weights(killed) == weights(undisturbed)
