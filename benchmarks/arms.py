"""Arms of an experiment: whole launches, one after the other. The result of each is a file, so what is done stays done.

    WORK/results/NAME.json   what was seen of an arm that came to its end
    WORK/runs/NAME           its run directory
    WORK/logs/NAME.log       what it said

All arms of a seed begin at the cold start of `python -m klong_rl.launch seed=N`, from the same cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
from hydra.utils import instantiate

from klong_rl import services
from klong_rl.cli import load_config
from klong_rl.cold_start import ColdStart
from klong_rl.ledger import read_ledger
from klong_rl.lineage import distance
from klong_rl.monitor.metrics import METRICS_FILE, read_metrics, read_summary

LOOK_S = 0.2  # between two looks at an arm's metrics: the error of a step's time


@dataclass(frozen=True)
class Arm:
    """`head` is the module that is run and its own arguments; `overrides` are those of klong_rl.launch."""

    name: str
    seed: int
    overrides: tuple[str, ...]
    head: tuple[str, ...] = ("klong_rl.launch",)
    timed: bool = False  # an interrupted one begins anew, rather than where it was


def parser(doc: str, work: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", type=Path, default=Path(work), help="runs and results; what is there isn't done again")
    made.add_argument(
        "--seed", type=int, action="append", help=f"do those alone; without it {', '.join(map(str, seeds))}"
    )
    made.add_argument("--next", action="store_true", help="do only the first arm that is missing")
    made.add_argument("--report", action="store_true", help="of the arms that are done")
    return made


def chosen(arms: Sequence[Arm], seeds: Sequence[int] | None) -> list[Arm]:
    return [arm for arm in arms if not seeds or arm.seed in seeds]


def run_missing(work: Path, arms: Sequence[Arm], only_next: bool = False) -> None:
    """Those without a result, in order."""
    for arm in arms:
        if not result_path(work, arm.name).exists():
            run(work.resolve(), arm)
            if only_next:
                return


def results(work: Path, arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """By name, of those that are done."""
    paths = {arm.name: result_path(work, arm.name) for arm in arms}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def result_path(work: Path, name: str) -> Path:
    return work / "results" / f"{name}.json"


def run(work: Path, arm: Arm) -> None:
    """From the cold start of its seed to its result. Ends the program where the launch fails."""
    model = cold_start(arm.seed)
    run_dir = work / "runs" / arm.name
    if arm.timed:
        shutil.rmtree(run_dir, ignore_errors=True)
    overrides = (
        f"root={run_dir.parent}",
        f"name={arm.name}",
        f"seed={arm.seed}",
        "model.source._target_=klong_rl.models.local.LocalFolder",
        f"+model.source.path={model}",
        "cold_start.steps=0",
    )
    log = work / "logs" / f"{arm.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began, loads = time.monotonic(), [os.getloadavg()[0]]
    with log.open("ab") as output:
        command = [sys.executable, "-m", *arm.head, *overrides, *arm.overrides]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{arm.name} was stopped"))
        try:
            ends = _watch(process, run_dir / METRICS_FILE, loads)
        finally:
            process.terminate()  # where it has not ended by itself
            process.wait()
    if process.returncode != 0:
        sys.exit(f"{arm.name} ended with {process.returncode}: see {log}")
    path = result_path(work, arm.name)
    path.parent.mkdir(exist_ok=True)
    seen = {
        "seed": arm.seed,
        "head": arm.head,
        "overrides": arm.overrides,
        "load_before": loads[0],
        "load_mean": sum(loads) / len(loads),
        "wall_s": time.monotonic() - began,
        "step_ends_s": ends,
        "steps": msgspec.to_builtins(read_metrics(run_dir)),
        "ledger": msgspec.to_builtins(read_ledger(run_dir)),
        "staleness_archive": archived_staleness(run_dir),
        "summary": msgspec.to_builtins(read_summary(run_dir)),
    }
    path.write_text(json.dumps(seen) + "\n")
    print(f"{arm.name}: {len(seen['steps'])} steps in {seen['wall_s']:.0f} s, load {seen['load_mean']:.1f}", flush=True)


def _watch(process: subprocess.Popen, metrics: Path, loads: list[float]) -> dict[int, float]:
    """When each learner step ended, on the monotonic clock, until the process has; one load average a second."""
    ends: dict[int, float] = {}
    looked = 0.0
    while process.poll() is None:
        now = time.monotonic()
        if metrics.exists():
            for line in metrics.read_bytes().split(b"\n")[:-1]:
                ends.setdefault(json.loads(line)["step"], now)
        if now - looked > 1.0:
            loads.append(os.getloadavg()[0])
            looked = now
        time.sleep(LOOK_S)
    return ends


def archived_staleness(run_dir: Path) -> int:
    """The most learner updates between a trained token and the weights that it trained, from the archive's versions."""
    lineage = {entry.version: entry.step - 1 for entry in read_ledger(run_dir)}
    rows = pq.read_table(run_dir / "archive", columns=["step", "advantage", "versions"]).to_pylist()
    trained = [row for row in rows if row["step"] is not None and row["advantage"] is not None]
    return max(distance(lineage, row["step"] - 1, min(row["versions"])) for row in trained)


def cold_start(seed: int) -> Path:
    """nano's cold start as conf/ has it, for the stages of conf/curriculum/nano.yaml: a Hugging Face folder."""
    config, _ = load_config([f"seed={seed}"])
    cold = ColdStart(config, instantiate(config.tasks))
    base = cold.base()
    folder = cold.folder(base)
    if not folder.exists():
        asyncio.run(_train(cold, base, folder, config))
    return folder


async def _train(cold: ColdStart, base: Path, folder: Path, config: Any) -> None:
    from learners.group import LearnerGroup
    from learners.job import LearnerJob
    from learners.publish import WeightFolder

    services.quiet_libraries()
    async with AsyncExitStack() as stack:
        services.start_ray(stack, "")
        job = LearnerJob(model=str(base), learner=cold.learner_config(), seed=config.seed)
        learner = await asyncio.to_thread(LearnerGroup, job, WeightFolder.in_shared_memory(f"cold-start-{config.seed}"))
        try:
            await asyncio.to_thread(cold.train, learner, base, folder, lambda step, loss: None)
        finally:
            learner.shutdown()
    print(f"cold start of seed {config.seed}: {folder}", flush=True)
