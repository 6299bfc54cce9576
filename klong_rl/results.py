"""What a run tells: the display while it runs, metrics by step, a summary and a report at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from klong_rl.agreement import Gap
from klong_rl.buffer import Counts, Result
from klong_rl.checkpoints import RunState
from klong_rl.config import RunConfig
from klong_rl.monitor.metrics import (
    MetricsLog,
    StageSummary,
    StepMetrics,
    Summary,
    installed_parts,
    read_summary,
    write_summary,
)
from klong_rl.monitor.progress import FleetStatus, Progress
from klong_rl.monitor.prometheus import Numbers
from klong_rl.monitor.report import write_report
from klong_rl.monitor.sinks import all_of
from klong_rl.types import ATTRIBUTED


class RunLog:
    """One launch's voice. `begin` it with each state that the run goes on from."""

    def __init__(self, config: RunConfig, run_dir: Path, progress: Progress) -> None:
        self._config = config
        self._run_dir = run_dir
        self._progress = progress
        self._metrics: MetricsLog | None = None
        self._sinks = all_of(config.monitor.sinks)
        self.numbers = Numbers(run_dir.name)
        self._phase, self._phase_since, self._stage = "starting", time.monotonic(), 0
        self._sampled = (time.monotonic(), 0)

    def begin(self, state: RunState) -> None:
        """The run goes on from `state`, which its training moves on: what was told of later steps is taken back."""
        self.close()
        self._state, self._stage = state, state.curriculum.stage
        self._metrics = MetricsLog(self._run_dir, restored_step=state.step)
        for sink in self._sinks:
            sink.begin(self._run_dir, without_secrets(asdict(self._config)), state.step)

    def step(self, metrics: StepMetrics) -> None:
        """A learner step ended."""
        self._metrics.write(metrics)
        self.numbers.step(metrics)
        for sink in self._sinks:
            sink.step(metrics)
        self._progress.update(metrics)

    def phase(self, phase: str, stage: int) -> None:
        """What the run does now."""
        self._phase, self._phase_since, self._stage = phase, time.monotonic(), stage

    @property
    def at(self) -> tuple[str, int]:
        """Phase and stage as they are now."""
        return self._phase, self._stage

    def say(self, text: str) -> None:
        self._progress.say(text)

    def warn(self, text: str) -> None:
        self.numbers.warnings += 1
        self._progress.warn(text)

    def fleet(self, status: dict[str, Any], counts: Counts, pacing: dict[str, float], memory: tuple[int, int]) -> None:
        """A look at the actors and at the buffer: its counts, and the bytes that it uses and may use."""
        then, sampled = self._sampled
        now = time.monotonic()
        # A revived engine counts from zero.
        rate = max(0, status["sampled_tokens"] - sampled) / max(now - then, 1e-6)
        self._sampled = (now, status["sampled_tokens"])
        for text in status["warnings"]:
            self.warn(text)
        self.numbers.look(status, counts, rate, pacing, memory)
        self._progress.update(
            FleetStatus(
                phase=self._phase,
                stage=self._stage,
                episodes_running=status["episodes"],
                episodes_finished=counts.states.get("judged", 0),
                tokens_per_s=rate,
                wait_s=now - self._phase_since if self._phase == "sampling" else 0.0,
            )
        )

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        for sink in self._sinks:
            sink.close()

    def finish(self, counts: Counts) -> None:
        """The table, `summary.json` and `report.html`."""
        write_summary(
            self._run_dir,
            Summary(
                stages=self._stages(),
                outcomes=_add(counts.outcomes["train"], counts.outcomes["eval"]),
                wall_s=self._state.wall_s,
                parts=installed_parts(),
                extras=self._state.evals,
            ),
        )
        self._progress.finish(self._stages())
        self._progress.say(f"report: {write_report(self._run_dir)}")

    def _stages(self) -> tuple[StageSummary, ...]:
        state, stages = self._state, []
        for number, stage in enumerate(self._config.curriculum.stages, 1):
            rewards = state.rewards.get(str(number), [])
            if not rewards:
                continue
            stages.append(
                StageSummary(
                    stage=number,
                    timeout_s=stage.timeout_s,
                    steps=len(rewards),
                    reward_mean=mean(rewards),
                    episodes=state.episodes.get(str(number), 0),
                    eval_cold_start=state.evals.get(f"cold-s{number}"),
                    eval_before=state.evals.get(f"before-s{number}"),
                    eval_after=state.evals.get(f"after-s{number}"),
                )
            )
        return tuple(stages)


def show_finished(run_dir: Path, progress: Progress) -> None:
    """What a finished run came to."""
    if (summary := read_summary(run_dir)) is not None:
        progress.finish(summary.stages)


def rewards_of(results: Sequence[Result]) -> list[float]:
    """Scores of the episodes that have one."""
    return [result.verdict.score for result in results if result.verdict]


def episode_numbers(results: Sequence[Result]) -> dict[str, float]:
    """What the metrics of a step say of its episodes."""
    rewards = rewards_of(results)
    return {
        "reward_mean": mean(rewards),
        "solved_fraction": mean([float(reward == 1.0) for reward in rewards]),
        "episodes_finished": len(results),
        "turns_mean": mean([float(result.n_segments) for result in results]),
    }


def step_extras(
    learned: Mapping[str, float],
    publishing: Mapping[str, float],
    gap: Gap,
    counts: Counts,
) -> dict[str, float]:
    """What else is known of a step, whatever the learner reports among it: an objective's own numbers."""
    return {
        **{name: value for name, value in learned.items() if name not in StepMetrics.__struct_fields__},
        **{f"publish_{phase}": seconds for phase, seconds in publishing.items()},
        "logprob_gap_tokens": gap.tokens,
        "windows_stale": counts.windows.get("stale", 0),
        "episodes_dropped": sum(counts.drops.values()),
    }


def sampled_numbers(results: Sequence[Result]) -> dict[str, float]:
    """What the metrics of a step say of the tokens that agents from outside were given; nothing of the built-in one."""
    found: Counter[str] = Counter()
    for result in results:
        if result.outcome is not None:
            found.update(result.outcome.sampled())
    if not found:
        return {}
    attributed = found[ATTRIBUTED]
    return {"attributed_tokens": float(attributed), "masked_tokens": float(found.total() - attributed)}


def without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """What may be told to others: `buffer.url` may hold a password."""
    return {key: value for key, value in config.items() if key != "buffer"}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
