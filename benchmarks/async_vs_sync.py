"""What does sampling ahead gain where tools take their time? `python -m benchmarks.async_vs_sync [--report]`

Real launches (engine, Docker sandboxes, learner on this machine), the same tasks and the same tool times, whose tail is
heavy (benchmarks.slow_tools), for as many learner steps of as many groups:

    ours            sampling runs ahead of the learner, up to the staleness bound
    one step off    the next step's groups are sampled while this one's are trained
    synchronous     nothing is sampled until the step is trained (rollout.max_staleness=0)

Each side once, then each again with another seed: WORK keeps what is done, so an interrupted one goes on.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.arms import Arm, chosen, parser, results, run_missing
from benchmarks.async_report import SIDES, write_report

MEDIAN_S = 2.0  # of a command's time
SEEDS = (0, 1, 2)
STEPS, GROUPS, GROUP_SIZE, HELD_OUT = 12, 2, 8, 48
DIFFICULTY, MAX_TURNS = 4, 9
BOUNDS = {"ours": 4, "one-step-off": 1, "synchronous": 0}
SHARED = (
    f"rollout.groups_per_step={GROUPS}",
    f"rollout.group_size={GROUP_SIZE}",
    f"evaluation.episodes={HELD_OUT}",
    f"actors.episodes={max(HELD_OUT, (1 + max(BOUNDS.values())) * GROUPS * GROUP_SIZE)}",
    "agent.command_timeout_s=60",
    "learner.objective=decoupled_ppo",
    "learner.checkpoint_every=8",
    f"curriculum.stages=[{{difficulty:{DIFFICULTY},timeout_s:600,max_turns:{MAX_TURNS},steps:{STEPS}}}]",
)
SETTINGS = {
    "a step": f"{GROUPS} groups of {GROUP_SIZE} episodes of relay with {DIFFICULTY} clues, at most {MAX_TURNS} turns",
    "a command": f"log-normal, median {MEDIAN_S:g} s, the longest {20 * MEDIAN_S:g} s",
    "a side": f"{STEPS} steps, decoupled PPO, bound of staleness {', '.join(f'{n} {b}' for n, b in BOUNDS.items())}",
    "held out": f"{HELD_OUT} tasks, before and after, commands not slowed",
}


def arms() -> list[Arm]:
    made = []
    for seed in SEEDS:
        for side in SIDES:
            head = ["benchmarks.slow_tools", "--median-s", str(MEDIAN_S), "--load-seed", str(seed)]
            head += ["--batches"] if side == "one-step-off" else []
            bound = f"rollout.max_staleness={BOUNDS[side]}"
            made.append(Arm(f"{side}-{seed}", seed, (*SHARED, bound), tuple(head), timed=True))
    return made


def main() -> None:
    cli = parser(__doc__, "runs/async-vs-sync", SEEDS)
    cli.add_argument("--json", type=Path, help="write what the report says there")
    arguments = cli.parse_args()
    if not arguments.report:
        run_missing(arguments.work, chosen(arms(), arguments.seed), arguments.next)
    write_report(results(arguments.work, arms()), SETTINGS, arguments.json)


if __name__ == "__main__":
    main()
