"""What masking or excluding episodes that a timeout cut does to the gradient. A simulation of the real rule, no model.

A policy chooses between two strategies by one logit: `quick` always ends in time and scores 0.6; `thorough` scores 1.0
if it ends in time, and 0.3 for what it has by then if it is cut. Its duration is log-normal, so the timeout cuts some
of it. What the policy should climb is the expected score *under this timeout*; its gradient has a closed form:

    J(p) = (1 - p) 0.6 + p ((1 - c) 1.0 + c 0.3),  dJ/dlogit = p (1 - p) (E[score | thorough] - E[score | quick])

with p the probability of `thorough` and c the share of it that is cut. For each rule of `rollout.cut_episodes` the mean
gradient over many groups of 8, through `klong_rl.groups.windows_of`, is set against it (times 7/8: a baseline that
includes an episode's own score takes that much from each). `right sign`: the rules that push the policy the right way.

    python -m benchmarks.cut_episodes [--groups 4000] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from datetime import date
from pathlib import Path
from statistics import NormalDist, mean, stdev

import numpy as np
from rich.console import Console
from rich.table import Table

from klong_rl.advantages import klong
from klong_rl.buffer.records import Member
from klong_rl.groups import CUT_RULES, windows_of
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict

QUICK, IN_TIME, CUT_SHORT = 0.6, 1.0, 0.3
SIGMA = 1.0  # of the logarithm of a thorough episode's duration; the timeout is 1
GROUP = 8
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of thorough episodes that are cut

TASK = Task(id="t", family="simulated", instruction="", image="")
TURN = Turn(
    index=0, context_start=0, action_A=np.zeros(1, np.int32), logprobs_A=np.zeros(1, np.float32), versions=((1, 1),),
    observation_O=np.zeros(0, np.int32), command="", exit_code=0, seconds=0.0,
)  # fmt: skip


def member(index: int, thorough: bool, duration: float) -> Member:
    """An episode as the buffer would have it; its id says the strategy."""
    cut = thorough and duration > 1.0
    score = (CUT_SHORT if cut else IN_TIME) if thorough else QUICK
    episode = f"{'thorough' if thorough else 'quick'}-{index}"
    spec = EpisodeSpec(
        id=episode, group="g", group_size=GROUP, stage=1, purpose="train", task=TASK, timeout_s=1.0, max_turns=1
    )
    segment = Segment(episode=episode, epoch=1, seq=0, turns=(TURN,), prefix_P=np.zeros(1, np.int32))
    return Member(spec, Outcome(kind="timeout" if cut else "submitted"), Verdict(score=score), [segment])


def gradient(members: list[Member], rule: str, p: float) -> float:
    """d/dlogit of the mean over the group's episodes of advantage x log-probability of the strategy."""
    windows = windows_of(members, klong, rule)
    slope = {"thorough": 1 - p, "quick": -p}
    return sum(window.advantage * slope[window.episode.partition("-")[0]] for window in windows) / GROUP


def measure(share: float, p: float, groups: int) -> dict[str, float]:
    """The true gradient, and of each rule the mean over `groups` and its standard error."""
    draw = random.Random(f"{share}/{p}")
    median = math.exp(SIGMA * NormalDist().inv_cdf(share))  # of the duration: P(duration > 1) = share
    found: dict[str, list[float]] = {rule: [] for rule in CUT_RULES}
    for _ in range(groups):
        members = [member(i, draw.random() < p, median * math.exp(draw.gauss(0, SIGMA))) for i in range(GROUP)]
        for rule in CUT_RULES:
            found[rule].append(gradient(members, rule, p))
    thorough = (1 - share) * IN_TIME + share * CUT_SHORT
    row = {"cut_share": share, "p": p, "true": (GROUP - 1) / GROUP * p * (1 - p) * (thorough - QUICK)}
    for rule, values in found.items():
        row[rule], row[f"{rule}_error"] = mean(values), stdev(values) / math.sqrt(groups)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [measure(share, p, given.groups) for p in (0.2, 0.8) for share in SHARES]
    table = Table("p(thorough)", "of it cut", "true", *CUT_RULES, "right sign")
    for row in rows:
        right = [rule for rule in CUT_RULES if row[rule] * row["true"] > 0]
        estimates = (f"{row[rule]:+.4f} ± {row[f'{rule}_error']:.4f}" for rule in CUT_RULES)
        table.add_row(f"{row['p']:g}", f"{row['cut_share']:.0%}", f"{row['true']:+.4f}", *estimates, ", ".join(right))
    Console(width=130).print(table)
    if given.json:
        given.json.write_text(json.dumps({"date": date.today().isoformat(), "groups": given.groups, "rows": rows}))


if __name__ == "__main__":
    main()
