"""The whole job on one GPU: does it learn, and what does sampling ahead gain where commands take their time?

    python -m benchmarks.gpu.one_job --out FOLDER [key=value ...]

One launch of `model=smollm2 cluster=one_gpu` with process sandboxes, from the cold start on. Its stages:

    1 to 3    relay at the limits of conf/curriculum/nano.yaml, in fewer steps: two, four and six clues
    4         synchronous: six clues, commands slowed (benchmarks.gpu.slow_commands), nothing sampled ahead
    5         ours: the same, sampled up to four versions ahead

Stages 4 and 5 train 64 episodes a step, and run as many at once. What is compared is trained action tokens by the
wall clock, and how much of it the GPU was busy (NVML, five looks a second), between the same steps of each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from klong_rl import launch, services, training
from klong_rl.config import StageConfig
from klong_rl.monitor.metrics import METRICS_FILE, StepMetrics, read_metrics, read_summary
from klong_rl.supply import Supply

LOOK_S = 0.2
MEDIAN_S = 0.25  # of a command's time
SYNCHRONOUS, OURS = 4, 5
BOUND = 4  # versions
GROUP_SIZE, GROUPS = 8, 8
STEPS = {SYNCHRONOUS: 5, OURS: 12}
# Steps that are compared: without those that fill the pipeline, and those for which nothing more is sampled.
COMPARED = {SYNCHRONOUS: (1, 5), OURS: (2, 8)}
LEARNING = ((2, 20, 6, 5), (4, 40, 9, 6), (6, 60, 12, 8))  # difficulty, timeout_s, max_turns, steps


def overrides(root: Path) -> list[str]:
    compared = [(6, 600, 12, STEPS[stage]) for stage in (SYNCHRONOUS, OURS)]
    stages = ",".join(
        f"{{difficulty:{d},timeout_s:{t},max_turns:{turns},steps:{steps}}}"
        for d, t, turns, steps in (*LEARNING, *compared)
    )
    return [
        f"root={root}",
        "name=job",
        f"cache={root / 'cache'}",
        "model=smollm2",
        "cluster=one_gpu",
        "sandbox.kind=process",
        "sandbox.allow_unisolated=true",
        "+learner.objective_options.importance=truncated",
        "learner.checkpoint_every=8",
        "engine.max_num_seqs=64",
        "engine.gpu_memory=0.1",
        "+engine.extra.kv_cache_memory_bytes=2147483648",
        "learner.gpu_memory=0.25",
        "agent.command_timeout_s=60",
        f"curriculum.stages=[{stages}]",
    ]


class StagedSupply(Supply):
    """As the stages are described above; the run's own settings are for the first three."""

    def begin(self, stage: int, settings: StageConfig) -> None:
        super().begin(stage, settings)
        if stage in STEPS:
            # Training has this very object, so the lease follows.
            self._config.groups_per_step, self._config.group_size = GROUPS, GROUP_SIZE
            self._config.max_staleness = BOUND if stage == OURS else 0


class Watch(threading.Thread):
    """Looks at the GPU, and at when each step ended, on the monotonic clock."""

    def __init__(self, metrics: Path, log: Path) -> None:
        super().__init__(daemon=True)
        self._metrics, self._log = metrics, log
        self.busy: list[tuple[float, float]] = []  # (when, share of the time before)
        self.memory_gib = 0.0  # most that was in use on the card
        self.ends: dict[int, float] = {}

    def run(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        while True:
            now = time.monotonic()
            self.busy.append((now, pynvml.nvmlDeviceGetUtilizationRates(card).gpu / 100))
            self.memory_gib = max(self.memory_gib, pynvml.nvmlDeviceGetMemoryInfo(card).used / 2**30)
            if self._metrics.exists():
                for line in self._metrics.read_bytes().split(b"\n")[:-1]:
                    self.ends.setdefault(json.loads(line)["step"], now)
            with self._log.open("a") as log:  # of use where the job is cut short
                log.write(json.dumps([round(now, 2), self.busy[-1][1], max(self.ends, default=0)]) + "\n")
            time.sleep(LOOK_S)


def side(steps: list[StepMetrics], watch: Watch, stage: int) -> dict[str, Any]:
    """From the end of the first to the end of the last step that is compared."""
    own = [step for step in steps if step.stage == stage]
    first, last = COMPARED[stage]
    trained = own[first:last]
    began, ended = watch.ends[own[first - 1].step], watch.ends[trained[-1].step]
    seen = [share for when, share in watch.busy if began < when <= ended]
    return {
        "steps": len(trained),
        "seconds": round(ended - began, 2),
        "action_tokens": sum(step.action_tokens for step in trained),
        "action_tokens_per_s": round(sum(step.action_tokens for step in trained) / (ended - began), 1),
        "gpu_busy": round(sum(seen) / max(len(seen), 1), 3),
        "reward_mean": round(sum(step.reward_mean for step in trained) / len(trained), 3),
        "staleness_max": max(step.staleness_max for step in trained),
        "wait_s": round(sum(step.wait_s for step in trained) / len(trained), 2),
        "learner_s": round(sum(step.learner_s for step in trained) / len(trained), 2),
        "publish_s": round(sum(step.publish_s for step in trained) / len(trained), 2),
    }


def compared(steps: list[StepMetrics], watch: Watch) -> dict[str, Any]:
    sides = {name: side(steps, watch, stage) for name, stage in (("synchronous", SYNCHRONOUS), ("ours", OURS))}
    ratio = sides["ours"]["action_tokens_per_s"] / sides["synchronous"]["action_tokens_per_s"]
    return {**sides, "ours_over_synchronous": round(ratio, 2)}


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path("runs/gpu-one-job"))
    options, more = cli.parse_known_args()
    out = options.out.absolute()
    run_dir = out / "job"
    shutil.rmtree(run_dir, ignore_errors=True)
    as_configured = services.sandbox_factory

    def slowed(*given: Any) -> dict[str, Any]:
        settings = {"median_s": MEDIAN_S, "stages": list(STEPS)}
        return as_configured(*given) | {"_target_": "benchmarks.gpu.slow_commands.SlowProcessSandboxes"} | settings

    services.sandbox_factory = slowed
    training.Supply = StagedSupply
    out.mkdir(parents=True, exist_ok=True)
    watch = Watch(run_dir / METRICS_FILE, out / "watch.jsonl")
    watch.start()
    began = time.monotonic()
    try:
        return launch.main([*overrides(out), *more])
    finally:  # whatever came of it
        _write(out / "one_job.json", run_dir, watch, began)


def _write(path: Path, run_dir: Path, watch: Watch, began: float) -> None:
    """What was seen, and, where both sides came to their end, how they compare."""
    steps = read_metrics(run_dir)
    result = {
        "seconds": round(time.monotonic() - began, 1),
        "card_memory_gib": round(watch.memory_gib, 1),
        "step_ends_s": {step: round(end - began, 2) for step, end in watch.ends.items()},
        "gpu_busy": [(round(when - began, 1), share) for when, share in watch.busy],
        "steps": msgspec.to_builtins(steps),
        "summary": msgspec.to_builtins(read_summary(run_dir)),
    }
    if len([step for step in steps if step.stage == OURS]) >= COMPARED[OURS][1]:
        result["compared"] = compared(steps, watch)
        print(json.dumps(result["compared"], indent=1))
    path.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    sys.exit(main())
