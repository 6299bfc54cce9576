"""Ten thousand sandboxes in virtual time: what the rules that pace a run do with them, and what they cost.

The rules are the program's own (klong_rl.pacing, supply, curriculum, buffer.rules, judging.lane, lineage); the world
around them is made up, in benchmarks/fleet_world.py: engines that slow down as they fill and waste work once their KV
cache is full, episodes whose work is log-normal, KLong's timeouts of 2, 4 and 6 hours, a judge model with a rate. The
rivals run through the same code, with another policy in the place of klong_rl.pacing:

    closing early         klong_rl too: groups of 8 don't wait for their last 2 (klong_rl.closing)
    one batch at a time   a step's groups are sampled, all of them, then trained (synchronous)
    all the sandboxes     as many episodes an engine as there are sandboxes for it; the staleness bounds what is ahead
    what surely fits      as many episodes an engine as its cache holds contexts of the greatest length

The second table is the cost: CPU seconds inside the rules by the number of things that happened, at 100 to 10,000
sandboxes (and 5 to 512 engines, groups a step in proportion), the garbage collector off; the median of `--repeat` runs.

    python -m benchmarks.fleet_simulation [--repeat 3] [--sandboxes 10000] [--steps 24] [--json OUT]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.fleet_controller import Fleet
from benchmarks.fleet_parts import FixedSlots, StalenessAlone, pacing
from benchmarks.fleet_world import World
from klong_rl.config import CloseEarlyConfig, RolloutConfig

SIZES = (100, 300, 1_000, 3_000, 10_000)
COST_STEPS = 4  # of each stage, where the cost is measured
BAR = 1.5  # times the cost of an event at the least size, at any other
COLUMNS = ("hours", "trained windows/h", "learner busy", "sandboxes busy", "stale", "mean age", "most", "queued",
           "to judge", "wait in an engine")  # fmt: skip

Pace = Callable[[World, RolloutConfig], tuple[Any, Any]]  # what stands for klong_rl.pacing's Slots and Ahead


class Policy(NamedTuple):
    pace: Pace
    max_staleness: int
    close_early: CloseEarlyConfig = CloseEarlyConfig()


def rollout_of(world: World, policy: Policy) -> RolloutConfig:
    return RolloutConfig(
        groups_per_step=world.groups_per_step,
        group_size=world.group_size,
        max_staleness=policy.max_staleness,
        close_early=policy.close_early,
    )


def fixed(slots: Callable[[World], int]) -> Pace:
    return lambda world, rollout: (FixedSlots(slots(world)), StalenessAlone(rollout))


def policies(world: World) -> dict[str, Policy]:
    every = fixed(lambda world: -(-world.sandboxes // world.engines))
    early = CloseEarlyConfig(members=world.group_size - 2, patience=2.0)
    return {
        "klong_rl": Policy(pacing, world.max_staleness),
        "klong_rl, closing early": Policy(pacing, world.max_staleness, early),
        "one batch at a time": Policy(every, 0),
        "all the sandboxes": Policy(every, world.max_staleness),
        "what surely fits": Policy(fixed(lambda world: world.fits), world.max_staleness),
    }


def measure(world: World, policy: Policy) -> dict[str, Any]:
    """One run to the end of its curriculum."""
    rollout = rollout_of(world, policy)
    fleet = Fleet(world, *policy.pace(world, rollout), rollout)
    gc.collect()
    gc.disable()
    try:
        fleet.run()
    finally:
        gc.enable()
    hours, stale = fleet.events.now / 3600, fleet.rules.window_counts["stale"]
    mean = {name: fmean(values) for name, values in fleet.samples.items()}
    return {
        "hours": hours,
        "trained_windows_per_h": fleet.trained_windows / hours,
        "learner_busy": fleet.busy_s / fleet.events.now,
        "sandboxes_busy": mean["running"],
        "stale_share": stale / (stale + fleet.trained_windows),
        "staleness_mean": mean["staleness_mean"],
        "staleness_max": max(fleet.samples["staleness_max"]),
        "queued": mean["queued"],
        "to_judge": mean["to_judge"],
        "waiting_per_engine": mean["waiting"],
        "events": fleet.timed.calls.total(),
        "us_per_event": fleet.timed.per_event_us,
        "us_by_kind": {what: 1e6 * fleet.timed.seconds[what] / n for what, n in fleet.timed.calls.items() if n},
    }


def compare(world: World) -> dict[str, Any]:
    return {name: measure(world, policy) for name, policy in policies(world).items()}


def costs(world: World, repeat: int) -> dict[str, Any]:
    found, ours = {}, policies(world)["klong_rl"]
    for sandboxes in SIZES:
        runs = [measure(replace(world, sandboxes=sandboxes, seed=i), ours) for i in range(repeat)]
        found[str(sandboxes)] = {
            "engines": replace(world, sandboxes=sandboxes).engines,
            "events": runs[0]["events"],
            "us_per_event": median(run["us_per_event"] for run in runs),
            "us_by_kind": {kind: median(run["us_by_kind"][kind] for run in runs) for kind in runs[0]["us_by_kind"]},
        }
    return found


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("", *COLUMNS, title=f"{result['world']['sandboxes']:,} sandboxes")
    for name, row in result["policies"].items():
        table.add_row(
            name, f"{row['hours']:.1f}", f"{row['trained_windows_per_h']:,.0f}", f"{row['learner_busy']:.0%}",
            f"{row['sandboxes_busy']:.0%}", f"{row['stale_share']:.1%}", f"{row['staleness_mean']:.2f}",
            f"{row['staleness_max']:.0f}", f"{row['queued']:,.0f}", f"{row['to_judge']:,.0f}",
            f"{row['waiting_per_engine']:.1f}",
        )  # fmt: skip
    console.print(table)
    table = Table("sandboxes", "engines", "events", "µs an event", "times the first")
    first = next(iter(result["costs"].values()))["us_per_event"]
    for sandboxes, row in result["costs"].items():
        cost = row["us_per_event"]
        table.add_row(
            f"{int(sandboxes):,}", str(row["engines"]), f"{row['events']:,}", f"{cost:.1f}", f"{cost / first:.2f}"
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each size, for the cost")
    parser.add_argument("--sandboxes", type=int, default=10_000, help="of the comparison")
    parser.add_argument("--steps", type=int, default=24, help="of each stage, in the comparison")
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    arguments = parser.parse_args()
    world = World(sandboxes=arguments.sandboxes, steps=arguments.steps)
    result = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "world": asdict(world),
        "costs": costs(replace(world, steps=COST_STEPS), arguments.repeat),
        "policies": compare(world),
    }
    show(result, Console(width=160))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    by_size = [row["us_per_event"] for row in result["costs"].values()]
    return 0 if max(by_size) <= BAR * by_size[0] else 1


if __name__ == "__main__":
    raise SystemExit(main())
