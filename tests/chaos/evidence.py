"""What a finished run left behind, read for the audit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from klong_rl.buffer.archive import turn_of
from klong_rl.buffer.server import AOF_FOLDER, FOLDER
from klong_rl.checkpoints import Checkpoints
from klong_rl.launch import run_id
from tests.chaos.aof import increment, transactions
from tests.chaos.audit import ArchivedEpisode, ArchivedTurn, Evidence, TrainedStep
from tests.chaos.replay import replay

LEDGER_FILE = "trained.jsonl"


def gather(run_dir: Path, max_staleness: int, steps: int) -> Evidence:
    """Everything of one run directory, whose run has ended."""
    state = Checkpoints.state(Checkpoints(run_dir, keep=2).newest())
    return Evidence(
        history=replay(run_id(run_dir), transactions(increment(run_dir / FOLDER / AOF_FOLDER))),
        archive=read_archive(run_dir / "archive"),
        ledger=read_ledger(run_dir / LEDGER_FILE),
        lineage=sorted(state.lineage.items()),
        max_staleness=max_staleness,
        steps=steps,
    )


def read_ledger(path: Path) -> list[TrainedStep]:
    """The steps of the weights that survived, as the learner noted them."""
    return [_step(json.loads(line)) for line in path.read_text().splitlines()]


def _step(line: dict[str, Any]) -> TrainedStep:
    windows = tuple(window for names in line["groups"].values() for window in names)
    return TrainedStep(line["step"], line["version"], windows, line["action_tokens"], line["staleness_max"])


def read_archive(folder: Path) -> list[ArchivedEpisode]:
    """Every episode of every file, in order. One that two files hold is there twice."""
    episodes: list[ArchivedEpisode] = []
    for path in sorted(folder.glob("groups-*.parquet")):
        rows = pq.read_table(path).to_pylist()
        episodes += [_episode(list(some)) for _, some in itertools.groupby(rows, key=lambda row: row["episode"])]
    return episodes


def _episode(rows: list[dict[str, Any]]) -> ArchivedEpisode:
    first = rows[0]
    return ArchivedEpisode(
        id=first["episode"],
        group=first["group"],
        purpose=first["purpose"],
        step=first["step"],
        dropped=first["dropped"] or "",
        prefix_P=None if first["prefix"] is None else np.array(first["prefix"], np.int32),
        turns=[ArchivedTurn(turn_of(row), row["window"]) for row in rows if row["turn"] is not None],
    )
