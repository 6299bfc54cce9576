"""Sinks are built by name and told each step; the configuration they are told holds no password."""

import sys
import types

import pytest

from klong_rl.buffer import Counts
from klong_rl.checkpoints import RunState
from klong_rl.cli import load_config
from klong_rl.config import BufferConfig, MonitorConfig, RunConfig
from klong_rl.errors import UserError
from klong_rl.monitor.metrics import StepMetrics, read_metrics
from klong_rl.monitor.progress import Progress
from klong_rl.monitor.sinks import WandbSink
from klong_rl.results import RunLog

TOLD = []


class Told:
    """Keeps what it is told."""

    def begin(self, run_dir, config, restored_step):
        TOLD.append(("begin", restored_step, config))

    def step(self, metrics):
        TOLD.append(("step", metrics.step))

    def close(self):
        TOLD.append(("close",))


def step(number: int) -> StepMetrics:
    return StepMetrics(step=number, stage=1, timeout_s=9.0, reward_mean=0.5, solved_fraction=0.0, policy_version=number)


def test_a_sink_is_told_each_step_and_when_the_run_goes_back(tmp_path):
    TOLD.clear()
    module = types.ModuleType("told_by_a_run")
    module.Told = Told
    sys.modules[module.__name__] = module
    config = RunConfig(
        buffer=BufferConfig(url="redis://u:secret@host"),
        monitor=MonitorConfig(sinks=[{"_target_": "told_by_a_run.Told"}]),
    )
    log = RunLog(config, tmp_path, Progress("run", stages=1, steps=2))
    log.begin(RunState())
    log.step(step(1))
    log.step(step(2))
    log.begin(RunState(step=1))
    log.step(step(2))
    log.close()
    assert [entry[:2] for entry in TOLD if entry[0] != "close"] == [
        ("begin", 0), ("step", 1), ("step", 2), ("begin", 1), ("step", 2)
    ]  # fmt: skip
    assert "secret" not in repr(TOLD) and TOLD[-1] == ("close",)
    assert [metrics.step for metrics in read_metrics(tmp_path)] == [1, 2]


def test_warnings_are_counted(tmp_path):
    log = RunLog(RunConfig(), tmp_path, Progress("run", stages=1, steps=2))
    log.warn("something")
    empty = Counts({}, {"train": {}, "eval": {}}, {}, {}, {}, {}, {})
    log.fleet(
        {"actors": {}, "episodes": 0, "sampled_tokens": 0, "engines": [], "warnings": ["another"]}, empty, {}, (0, 0)
    )
    assert log.numbers.warnings == 2


def test_w_and_b_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        WandbSink().begin(tmp_path, {}, 0)


def test_offline_w_and_b_writes_below_the_run(tmp_path):
    pytest.importorskip("wandb")
    sink = WandbSink()
    sink.begin(tmp_path, {"seed": 1}, 0)
    sink.step(step(1))
    sink.close()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 0


@pytest.mark.parametrize("override", ["monitor.prometheus_port=70000", "monitor.sinks=[{project:x}]"])
def test_what_can_t_work_is_refused(override):
    with pytest.raises(UserError, match="monitor."):
        load_config([override])
