"""What `benchmarks.staleness` came to: a table, the numbers as JSON, reward by step as a figure."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.figure import write_svg
from benchmarks.machine import about
from klong_rl.monitor.charts import Chart, Series

# By name: objective and bound. Those at 4 are the comparison, in the figure beside the synchronous one.
ARMS = {
    "synchronous": ("klong", 0),
    "naive-4": ("klong", 4),
    "decoupled-4": ("decoupled_ppo", 4),
    "decoupled-1": ("decoupled_ppo", 1),
    "decoupled-8": ("decoupled_ppo", 8),
}
IN_FIGURE = ("synchronous", "naive-4", "decoupled-4")
SMOOTHED = 4  # steps of training reward


def measure(result: dict[str, Any]) -> dict[str, Any]:
    steps, evals = result["steps"], result["summary"]["extras"]
    return {
        "staleness_ledger": max(step["staleness_max"] for step in result["ledger"]),
        "staleness_archive": result["staleness_archive"],
        "staleness_mean": mean(step["extras"]["staleness_mean"] for step in steps),
        "windows_stale": steps[-1]["extras"]["windows_stale"],
        "windows": sum(step["windows"] for step in steps),
        "reward_before": evals["cold-s1"],
        "reward_after": evals["after-s1"],
        "reward_training": mean(step["reward_mean"] for step in steps[len(steps) // 2 :]),
        "clip_fraction": mean(step["clip_fraction"] for step in steps),
        "rewards": [step["reward_mean"] for step in steps],
        "load_mean": result["load_mean"],
    }


def write_report(found: dict[str, dict[str, Any]], settings: dict[str, str], out: Path | None) -> None:
    """Print the table, as Markdown; with `out`, write the JSON there and the figure beside it.

    Raises AssertionError where a trained window exceeds its arm's bound.
    """
    arms: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for name, result in found.items():
        arms[name.rpartition("-")[0]][result["seed"]] = measure(result)
    for name, seeds in arms.items():
        for seed, one in seeds.items():
            worst = max(one["staleness_ledger"], one["staleness_archive"])
            assert worst <= ARMS[name][1], f"{name}, seed {seed}: a window of staleness {worst} was trained"
    if not arms:
        return
    Console(width=240).print(_table(arms))
    if out:
        out.write_text(json.dumps(about() | {"settings": settings, "arms": arms}, indent=1) + "\n")
        _figure(arms, out.with_suffix(".svg"))


def _table(arms: dict[str, dict[int, dict[str, Any]]]) -> Table:
    heads = ("", "bound", "staleness, most", "mean", "too stale", "held out", "by seed", "training", "clipped")
    table = Table(*heads, box=MARKDOWN)
    for name, (_, bound) in ARMS.items():
        seeds = list(arms.get(name, {}).values())
        if not seeds:
            continue
        stale, windows = sum(one["windows_stale"] for one in seeds), sum(one["windows"] for one in seeds)
        table.add_row(
            name,
            str(bound),
            str(max(max(one["staleness_ledger"], one["staleness_archive"]) for one in seeds)),
            f"{mean(one['staleness_mean'] for one in seeds):.1f}",
            f"{stale:.0f} of {stale + windows:.0f} windows",
            f"{mean(one['reward_before'] for one in seeds):.3f} → {mean(one['reward_after'] for one in seeds):.3f}",
            ", ".join(f"{one['reward_after']:.3f}" for one in seeds),
            f"{mean(one['reward_training'] for one in seeds):.3f}",
            f"{mean(one['clip_fraction'] for one in seeds):.1%}",
        )
    return table


def _figure(arms: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Training reward over the last steps by step, mean over seeds."""
    steps = len(next(iter(next(iter(arms.values())).values()))["rewards"])
    series = []
    for color, name in enumerate(IN_FIGURE, 1):
        seeds = arms.get(name, {}).values()
        if seeds:
            at = [mean(mean(one["rewards"][max(0, i - SMOOTHED) : i]) for one in seeds) for i in range(1, steps + 1)]
            series.append(Series(name, color, at))
    write_svg(
        path, Chart("Training reward by step", "", tuple(series), "{:.2g}".format, top=1.0), list(range(1, steps + 1))
    )
