"""Does the bound hold, and what does staleness cost? `python -m benchmarks.staleness [--report]`

AReaL's ablation (arXiv 2505.24298) in miniature: real launches with the staleness bound at 1, 4 and 8, with decoupled
PPO, and with PPO that clips against whatever policy sampled (naive) at 4; beside them the synchronous run. The learning
rate is higher than nano's own, so that a few versions are far apart.

That no trained window exceeds the bound is read twice: from the ledger that the learner keeps, and from the versions
that stand beside each token in the archive.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.arms import Arm, chosen, parser, results, run_missing
from benchmarks.staleness_report import ARMS, write_report

SEEDS = (0, 1, 2)
STEPS, GROUPS, GROUP_SIZE, HELD_OUT, LR = 18, 2, 8, 48, 5e-4
DIFFICULTY, MAX_TURNS = 6, 12
SHARED = (
    f"rollout.groups_per_step={GROUPS}",
    f"rollout.group_size={GROUP_SIZE}",
    f"evaluation.episodes={HELD_OUT}",
    f"learner.optimizer.lr={LR}",
    "learner.checkpoint_every=10",
    f"curriculum.stages=[{{difficulty:{DIFFICULTY},timeout_s:600,max_turns:{MAX_TURNS},steps:{STEPS}}}]",
)
SETTINGS = {
    "a step": f"{GROUPS} groups of {GROUP_SIZE} episodes of relay with {DIFFICULTY} clues, at most {MAX_TURNS} turns",
    "an arm": f"{STEPS} steps at a learning rate of {LR:g} (nano's own is 1.2e-4)",
    "held out": f"{HELD_OUT} tasks, before and after",
}


def arms() -> list[Arm]:
    made = []
    for seed in SEEDS:
        for name, (objective, bound) in ARMS.items():
            own = (
                f"learner.objective={objective}",
                f"rollout.max_staleness={bound}",
                f"actors.episodes={max(HELD_OUT, (1 + bound) * GROUPS * GROUP_SIZE)}",
            )
            made.append(Arm(f"{name}-{seed}", seed, (*SHARED, *own)))
    return made


def main() -> None:
    cli = parser(__doc__, "runs/staleness", SEEDS)
    cli.add_argument("--json", type=Path, help="write what the report says there, its figure beside it")
    arguments = cli.parse_args()
    if not arguments.report:
        run_missing(arguments.work, chosen(arms(), arguments.seed), arguments.next)
    write_report(results(arguments.work, arms()), SETTINGS, arguments.json)


if __name__ == "__main__":
    main()
