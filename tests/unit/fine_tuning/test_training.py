"""The loop of a fine-tuning, with a learner that only adds up what it is given: steps, checkpoints, going on."""

import json

import numpy as np
import pytest

from klong_rl.checkpoints import Checkpoints
from klong_rl.fine_tuning.config import SftConfig
from klong_rl.fine_tuning.training import METRICS_FILE, SftMetrics, SftState, SftTraining
from klong_rl.step_lines import read_lines
from tests.unit.fine_tuning.test_stream import source, stream


class Killed(Exception):
    pass


class Sums:
    """Its weights are a digest of all that it trained, in order. It dies before step `dies_at`."""

    def __init__(self, dies_at: int = 10**9) -> None:
        self.weights, self.steps, self.dies_at = 0, 0, dies_at
        self._looks = 0

    def sft_step(self, windows):
        if self.steps == self.dies_at:
            raise Killed
        self.steps += 1
        for window in windows:
            self.weights = hash((self.weights, window.tokens_T.tobytes(), window.targets_T.tobytes()))
        tokens = sum(len(window.tokens_T) for window in windows)
        return {
            "loss": 1.0,
            "grad_norm": 1.0,
            "learning_rate": 1.0,
            "tokens": tokens,
            "action_tokens": 1,
            "step_s": 1.0,
        }

    def logprobs(self, refs, windows, temperature):
        assert temperature == 1.0
        return {window.id: -2.0 * window.targets_T.astype(np.float32) for window in windows}

    def begin_save(self, folder):
        self._begun = folder, json.dumps([self.weights, self.steps])

    def finish_save(self, wait):
        """Written two looks after it was begun, unless somebody waits."""
        self._looks = 0 if wait else self._looks + 1
        if 0 < self._looks < 2:
            return False
        folder, text = self._begun
        (folder / "megatron").write_text(text)
        (folder / "hf").mkdir()
        self._looks = 0
        return True

    def load(self, folder):
        self.weights, self.steps = json.loads(folder.read_text())


@pytest.fixture
def config():
    config = SftConfig(data="x", epochs=2, evaluate_every=4)
    config.learner.checkpoint_every = 3
    return config


def life(config, made, run_dir, learner):
    """One life, from the newest checkpoint; the metrics that it told."""
    checkpoints = Checkpoints(run_dir, keep=2)
    newest, told = checkpoints.newest(), []
    state = SftState()
    if newest is not None:
        state = Checkpoints.state(newest, SftState)
        learner.load(newest / "megatron")
    held_out = next(iter(stream(made))).windows
    SftTraining(config, run_dir, checkpoints, learner, stream(made, state.position), held_out, state, told.append).run()
    return told


def test_killed_at_any_step_it_ends_as_if_it_had_not_been(config, tmp_path):
    made = source(tmp_path, 3)
    whole = Sums()
    told = life(config, made, tmp_path / "whole", whole)
    assert len(told) > 8 and told[-1].epochs == 2.0
    for step in range(len(told)):
        run_dir = tmp_path / f"killed-{step}"
        with pytest.raises(Killed):
            life(config, made, run_dir, Sums(dies_at=step))
        again = Sums()
        life(config, made, run_dir, again)
        assert (again.weights, again.steps) == (whole.weights, whole.steps)
        lines = read_lines(run_dir / METRICS_FILE, SftMetrics)
        assert lines == told
        (a, b) = (Checkpoints.state(Checkpoints(d, 2).newest(), SftState) for d in (run_dir, tmp_path / "whole"))
        assert (a.step, a.position, a.tokens) == (b.step, b.position, b.tokens)


def test_the_end_is_evaluated_and_has_a_checkpoint(config, tmp_path):
    made = source(tmp_path, 3)
    told = life(config, made, tmp_path / "run", Sums())
    evaluated = {metrics.step for metrics in told if metrics.eval_loss is not None}
    assert evaluated == {*range(4, len(told) + 1, 4), len(told)}
    assert all(metrics.eval_loss == 2.0 for metrics in told if metrics.step in evaluated)
    newest = Checkpoints(tmp_path / "run", 2).newest()
    assert newest.name == f"step-{len(told):06d}" and (newest / "hf").is_dir()


def test_it_ends_after_the_steps_asked_for_and_goes_on_when_more_are(config, tmp_path):
    made = source(tmp_path, 3)
    whole = Sums()
    life(config, made, tmp_path / "whole", whole)
    config.steps = 4
    assert len(life(config, made, tmp_path / "run", Sums())) == 4
    config.steps = 0
    more = Sums()
    life(config, made, tmp_path / "run", more)
    assert (more.weights, more.steps) == (whole.weights, whole.steps)
