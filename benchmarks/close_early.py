"""What closing a group early does to the gradient. A simulation of the real rules, no model.

A policy chooses between two strategies by one logit: `quick` scores 0.6, `thorough` 1.0, each with a deviation of 0.2.
Both take log-normal time, `thorough` so many times longer in the median. What the policy should climb is the expected
score, whose gradient is p (1 - p) (1.0 - 0.6). For groups of 8 that are closed with 5 or more verdicts
(`rollout.close_early`, klong_rl.closing.is_overdue at patience 1.5), the mean gradient over many groups, through
`klong_rl.groups.windows_of` with a leave-one-out baseline, is set against it:

    wait   every group waits for all
    join   late episodes are trained when they come, against those that came in
    drop   late episodes are dropped

    python -m benchmarks.close_early [--groups 1000] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from datetime import date
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cut_episodes import GROUP, TURN
from klong_rl.advantages import rloo
from klong_rl.buffer.records import Age, Member
from klong_rl.closing import is_overdue
from klong_rl.config import CloseEarlyConfig
from klong_rl.groups import windows_of
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Verdict, Window

QUICK, THOROUGH, NOISE = 0.6, 1.0, 0.2
SIGMA = 0.8  # of the logarithm of a duration
RULE = CloseEarlyConfig(members=5, patience=1.5)
TIMES = (1.0, 2.0, 4.0, 10.0)  # how much longer thorough takes
TASK = Task(id="t", family="simulated", instruction="", image="")


def member(index: int, thorough: bool, score: float) -> Member:
    """An episode as the buffer would have it; its id says the strategy."""
    episode = f"{'thorough' if thorough else 'quick'}-{index}"
    spec = EpisodeSpec(
        id=episode, group="g", group_size=GROUP, stage=1, purpose="train", task=TASK, timeout_s=1.0, max_turns=1
    )
    segment = Segment(episode=episode, epoch=1, seq=0, turns=(TURN,), prefix_P=np.zeros(1, np.int32))
    return Member(spec, Outcome(kind="submitted"), Verdict(score=score), [segment])


def closed_with(durations: list[float]) -> set[int]:
    """Who has come in when the group is closed: looked at each time one does, and when those left come to be late."""
    for now in sorted({at for d in durations for at in (d, *(RULE.patience * d * 1.001 for d in durations))}):
        ages = [Age(str(i), "judged" if d <= now else "running", min(d, now)) for i, d in enumerate(durations)]
        if all(age.state == "judged" for age in ages) or is_overdue(ages, RULE):
            return {i for i, age in enumerate(ages) if age.state == "judged"}
    raise AssertionError("every group is closed by its last episode")


def gradients(members: list[Member], came_in: set[int], p: float) -> dict[str, float]:
    """d/dlogit of the mean over the group's episodes of advantage x log-probability of the strategy."""
    first = [m for i, m in enumerate(members) if i in came_in]
    late = [m for i, m in enumerate(members) if i not in came_in]
    in_time = windows_of(first, rloo)
    joined = windows_of(late, rloo, came_in={m.spec.id: m.verdict.score for m in first})
    return {
        "wait": slope(windows_of(members, rloo), p),
        "join": slope([*in_time, *joined], p),
        "drop": slope(in_time, p),
    }


def slope(windows: list[Window], p: float) -> float:
    by_strategy = {"thorough": 1 - p, "quick": -p}
    return sum(window.advantage * by_strategy[window.episode.partition("-")[0]] for window in windows) / GROUP


def measure(times: float, p: float, groups: int) -> dict[str, float]:
    """The true gradient; of each way the mean over `groups` and its standard error; and how much was late."""
    draw = random.Random(f"{times}/{p}")
    found: dict[str, list[float]] = {"wait": [], "join": [], "drop": []}
    late = saved = 0.0
    for _ in range(groups):
        kinds = [draw.random() < p for _ in range(GROUP)]
        durations = [draw.lognormvariate(math.log(times if thorough else 1.0), SIGMA) for thorough in kinds]
        scores = [draw.gauss(THOROUGH if thorough else QUICK, NOISE) for thorough in kinds]
        came_in = closed_with(durations)
        late += 1 - len(came_in) / GROUP
        saved += 1 - max(durations[i] for i in came_in) / max(durations)
        members = [member(i, *each) for i, each in enumerate(zip(kinds, scores, strict=True))]
        for way, value in gradients(members, came_in, p).items():
            found[way].append(value)
    row = {"times": times, "p": p, "late": late / groups, "sooner": saved / groups}
    row["true"] = p * (1 - p) * (THOROUGH - QUICK)
    for way, values in found.items():
        row[way], row[f"{way}_error"] = mean(values), stdev(values) / math.sqrt(groups)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    arguments = parser.parse_args()
    rows = [measure(times, p, arguments.groups) for p in (0.2, 0.8) for times in TIMES]
    table = Table("p(thorough)", "takes", "late", "sooner", "true", "wait", "join", "drop", "error")
    for row in rows:
        table.add_row(
            f"{row['p']:g}", f"{row['times']:g} ×", f"{row['late']:.0%}", f"{row['sooner']:.0%}",
            *(f"{row[name]:+.4f}" for name in ("true", "wait", "join", "drop")),
            f"{max(row[f'{way}_error'] for way in ('wait', 'join', 'drop')):.4f}",
        )  # fmt: skip
    Console(width=130).print(table)
    if arguments.json:
        result = {"date": date.today().isoformat(), "groups": arguments.groups, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
