"""`python -m klong_rl.sft` as a user runs it: files in, a folder that transformers loads out, through a kill."""

import itertools
import json
import random
import signal
import time
from pathlib import Path

import pytest

from klong_rl.fine_tuning.training import METRICS_FILE, SftMetrics
from klong_rl.step_lines import read_lines
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks
from tests.launched import LaunchedRun

pytestmark = pytest.mark.integration

STEPS = 7
SETTINGS = (f"steps={STEPS}", "evaluate_every=2", "learner.checkpoint_every=2", "held_out_share=0.2", "epochs=3")
SETTINGS += ("shuffle_windows=16", "tokens_per_step=512", "held_out_tokens=1024")


@pytest.fixture
def data(tmp_path) -> Path:
    """Twelve conversations that solve relay tasks."""
    path, family, rng = tmp_path / "demos.jsonl", RelayTasks(), random.Random(0)
    with path.open("w") as file:
        for index in range(12):
            task = family.train(6, index)
            turns = RelayDemonstrator(forgets=0.0, gives_up=0.0).demonstrate(task, rng)
            talk = itertools.chain.from_iterable(zip(("assistant", "tool"), turn, strict=True) for turn in turns)
            messages = [{"role": "user", "content": task.instruction}]
            messages += [{"role": role, "content": text} for role, text in talk]
            file.write(json.dumps({"id": task.id, "messages": messages}) + "\n")
    return path


@pytest.fixture
def fine_tune(tmp_path, model_cache, data):
    launched: list[LaunchedRun] = []

    def start(*overrides: str) -> LaunchedRun:
        defaults = (f"root={tmp_path / 'runs'}", f"cache={model_cache}", f"data={data}", *SETTINGS)
        log = tmp_path / f"sft-{len(launched)}.log"
        launched.append(LaunchedRun((*defaults, *overrides), log, module="klong_rl.sft"))
        return launched[-1].start()

    yield start
    for run in launched:
        run.kill()


def metrics(run_dir: Path) -> list[SftMetrics]:
    return read_lines(run_dir / METRICS_FILE, SftMetrics)


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / f"step-{STEPS:06d}" / "hf" / "model.safetensors").read_bytes()


def test_conversations_become_a_model_that_transformers_loads(fine_tune, tmp_path, data):
    run = fine_tune("name=a")
    assert run.finish(240) == 0, run.output()[-3000:]
    told = metrics(tmp_path / "runs" / "a")
    assert [m.step for m in told] == list(range(1, STEPS + 1))
    assert told[-1].loss < told[0].loss / 2, "it learns"
    folder = tmp_path / "runs" / "a" / "checkpoints" / f"step-{STEPS:06d}" / "hf"
    assert str(folder) in run.output()
    assert loss_by_transformers(folder, data) == pytest.approx(told[-1].eval_loss, rel=1e-4)
    run.wait_until_gone(20)


def loss_by_transformers(folder: Path, data: Path) -> float:
    """The held-out loss, computed by transformers on the same windows."""
    import torch
    from transformers import AutoModelForCausalLM

    from klong_rl.config import AgentConfig
    from klong_rl.fine_tuning.files import DataSet, open_files
    from klong_rl.fine_tuning.rows import Encoder
    from klong_rl.fine_tuning.stream import WindowSource, held_out_windows, is_held_out
    from klong_rl.windows import ContextRule

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    files = DataSet(open_files(str(data), "data"), None)
    encoder, rule = Encoder(folder, AgentConfig()), ContextRule(128, 24, 16)
    windows = held_out_windows(WindowSource(files, encoder, rule, 0, lambda row: is_held_out(row.id, 0.2)), 1024)
    total = 0.0
    with torch.no_grad():
        for window in windows:
            tokens_1T = torch.tensor(window.tokens_T, dtype=torch.long)[None]
            logprobs_TV = model(tokens_1T).logits[0, :-1].log_softmax(-1)
            logprobs_T = logprobs_TV.gather(-1, tokens_1T[0, 1:, None])[:, 0]
            total -= float(logprobs_T[torch.tensor(window.targets_T[1:]) == 1].sum())
    return total / sum(window.n_targets() for window in windows)


@pytest.mark.slow
def test_killed_and_launched_again_it_ends_with_the_same_weights_bit_for_bit(fine_tune, tmp_path):
    undisturbed = fine_tune("name=undisturbed")
    assert undisturbed.finish(240) == 0, undisturbed.output()[-3000:]
    run_dir = tmp_path / "runs" / "killed"

    run = fine_tune("name=killed")
    kill_after_step(run, run_dir, 3)
    again = fine_tune("name=killed")
    again.wait_for("going on after step 2", 240)
    # A rank dies as well: another learner goes on in the same launch.
    wait_for_step(again, run_dir, 5)
    again.kill_process("ray::Rank")
    again.wait_for("a new learner goes on after step", 240)
    assert again.finish(240) == 0, again.output()[-3000:]

    assert [m.step for m in metrics(run_dir)] == list(range(1, STEPS + 1))
    assert [m.eval_loss for m in metrics(run_dir)] == [m.eval_loss for m in metrics(tmp_path / "runs" / "undisturbed")]
    assert weights(run_dir) == weights(tmp_path / "runs" / "undisturbed")

    finished = fine_tune("name=killed")
    assert finished.finish(60) == 0 and f"{STEPS} steps" in finished.output()
    more = fine_tune("name=killed", "seed=1")
    assert more.finish(60) == 2 and "seed=0, this launch has seed=1" in more.output()


def wait_for_step(run: LaunchedRun, run_dir: Path, step: int) -> None:
    until = time.monotonic() + 240
    while len(metrics(run_dir)) < step:
        assert run.process.poll() is None and time.monotonic() < until, run.output()[-3000:]
        time.sleep(0.02)


def kill_after_step(run: LaunchedRun, run_dir: Path, step: int) -> None:
    """All of it at once, as a loss of power does."""
    wait_for_step(run, run_dir, step)
    run.signal_group(signal.SIGKILL)
    run.process.wait(20)
    run.wait_until_gone(60)
