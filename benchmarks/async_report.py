"""What `benchmarks.async_vs_sync` came to: a table, the numbers as JSON, reward against wall time as a figure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.figure import write_svg
from benchmarks.machine import about
from klong_rl.monitor.charts import Chart, Series

SIDES = {"synchronous": "synchronous", "ours": "ours", "one-step-off": "one step off"}
BAR = 2.8  # times the synchronous side's trained tokens an hour
RATES = ("tokens_per_hour", "episodes_per_hour")  # a policy's episodes grow longer, or shorter, as it learns
SMOOTHED = 4  # steps of training reward
GRID_S = 5  # of the figure


def measure(result: dict[str, Any]) -> dict[str, Any]:
    """One arm. Its time goes from where its first step began to wait, to where the last was published."""
    steps, ends = result["steps"], list(result["step_ends_s"].values())
    first = steps[0]
    began = ends[0] - (first["wait_s"] + first["learner_s"] + first["publish_s"])
    tokens, evals = sum(step["action_tokens"] for step in steps), result["summary"]["extras"]
    return {
        "tokens_per_hour": tokens / (ends[-1] - began) * 3600,
        "episodes_per_hour": sum(step["episodes_finished"] for step in steps) / (ends[-1] - began) * 3600,
        "tokens": tokens,
        "seconds": ends[-1] - began,
        "learner_waits": sum(step["wait_s"] for step in steps) / (ends[-1] - began),
        "reward_training": mean(step["reward_mean"] for step in steps[len(steps) // 2 :]),
        "reward_before": evals["cold-s1"],
        "reward_after": evals["after-s1"],
        "staleness_max": max(step["staleness_max"] for step in result["ledger"]),
        "staleness_mean": mean(step["extras"]["staleness_mean"] for step in steps),
        "windows_stale": steps[-1]["extras"]["windows_stale"],
        "episodes_dropped": steps[-1]["extras"]["episodes_dropped"],
        "load_before": result["load_before"],
        "load_mean": result["load_mean"],
        "rewards": [step["reward_mean"] for step in steps],
        "ends_s": [end - began for end in ends],
    }


def compare(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By side: each seed's measures; and what ours is of the others, by medians and by seed."""
    sides: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for name, result in found.items():
        sides[name.rpartition("-")[0]][result["seed"]] = measure(result)
    ratios = {
        side: {rate: _ratio(sides["ours"], sides[side], rate) for rate in RATES} for side in sides if "ours" in sides
    }
    return {"bar": BAR, "ratios": ratios, "sides": sides}


def _ratio(ours: dict[int, dict[str, Any]], rival: dict[int, dict[str, Any]], rate: str) -> dict[str, Any]:
    both = sorted(ours.keys() & rival.keys())
    return {
        "of_medians": median(one[rate] for one in ours.values()) / median(one[rate] for one in rival.values()),
        "by_seed": {seed: ours[seed][rate] / rival[seed][rate] for seed in both},
    }


def write_report(found: dict[str, dict[str, Any]], settings: dict[str, str], out: Path | None) -> None:
    """Print the table, as Markdown; with `out`, write the JSON there and the figure beside it."""
    if not found:
        return
    compared = compare(found)
    Console(width=240).print(_table(compared))
    if out:
        out.write_text(json.dumps(about() | {"settings": settings} | compared, indent=1) + "\n")
        _figure(compared["sides"], out.with_suffix(".svg"))


def _table(compared: dict[str, Any]) -> Table:
    heads = ("", "tokens/hour", "ours is", "episodes/hour", "ours is", "learner waits", "held out", "training reward")
    heads += ("staleness", "load")
    table = Table(*heads, box=MARKDOWN)
    for side, name in SIDES.items():
        if side not in compared["sides"]:
            continue
        seeds = list(compared["sides"][side].values())
        table.add_row(
            name,
            *(cell for rate in RATES for cell in _cells(compared["ratios"].get(side, {}).get(rate), seeds, rate)),
            f"{median(one['learner_waits'] for one in seeds):.0%}",
            f"{mean(one['reward_before'] for one in seeds):.3f} → {mean(one['reward_after'] for one in seeds):.3f}",
            f"{mean(one['reward_training'] for one in seeds):.3f}",
            f"{mean(one['staleness_mean'] for one in seeds):.1f}, at most {max(one['staleness_max'] for one in seeds)}",
            f"{mean(one['load_before'] for one in seeds):.0f}, {mean(one['load_mean'] for one in seeds):.0f}",
        )
    return table


def _cells(ratio: dict[str, Any] | None, seeds: Sequence[dict[str, Any]], rate: str) -> tuple[str, str]:
    own = spread([one[rate] for one in seeds], ",.0f")
    if ratio is None:
        return own, ""
    return own, f"{ratio['of_medians']:.2f} × ({', '.join(f'{r:.2f}' for r in ratio['by_seed'].values())})"


def spread(values: Sequence[float], form: str) -> str:
    """The median, and in brackets the least and the most."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _figure(sides: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Training reward over the last steps against wall time, mean over seeds; a side that is done stays where it is."""
    longest = max(one["seconds"] for seeds in sides.values() for one in seeds.values())
    grid = range(GRID_S, int(longest) + GRID_S, GRID_S)
    series = []
    for color, (side, name) in enumerate(SIDES.items(), 1):
        seeds = sides.get(side, {}).values()
        if seeds:
            series.append(Series(name, color, [mean(_reward_at(one, t) for one in seeds) for t in grid]))
    chart = Chart("Training reward by seconds of training", "", tuple(series), "{:.2g}".format, top=1.0)
    write_svg(path, chart, list(grid))


def _reward_at(one: dict[str, Any], seconds: float) -> float:
    done = [reward for reward, end in zip(one["rewards"], one["ends_s"], strict=True) if end <= seconds]
    return mean(done[-SMOOTHED:]) if done else one["reward_before"]
