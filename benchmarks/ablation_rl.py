"""The paper's second ablation in miniature: short timeouts, long timeouts, or timeouts that grow, for the same tokens.

    python -m benchmarks.ablation_rl            # what is missing of all arms and seeds: minutes each
    python -m benchmarks.ablation_rl --report   # docs/ablations_rl.md, its figures and numbers, of what is there

KLong (arXiv 2602.17547) gives its agent 2, then 4, then 6 hours for the same tasks. Here an hour is a turn or two: the
tasks have 2, 4 and 6 clues, of which the first limit lets an agent finish the shortest only. All arms of a seed begin
at the same cold start, train on the same stream of tasks for as many action tokens, and are evaluated at the longest
limit, on the same held-out tasks of 6 clues.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablation_rl_report import ARMS, write_report
from benchmarks.arms import Arm, chosen, parser, results, run_missing

SEEDS = (0, 1, 2)
GROUPS, GROUP_SIZE, HELD_OUT, LR = 2, 8, 48, 1.2e-4
TOKENS = 6000  # of each third of a run
MOST_STEPS = 40  # of each third
SETTINGS = {
    "tasks": "relay, a third of them of 2, 4 and 6 clues each",
    "limits": "an episode has at most 4, 6 or 9 turns: 3, 5 or 7 are what a task needs",
    "training": f"{3 * TOKENS:,} action tokens, {GROUPS} groups of {GROUP_SIZE} episodes a step, learning rate {LR:g}",
    "held out": f"{HELD_OUT} tasks of 6 clues, at most 9 turns; at the cold start and after each third of the tokens",
}
DOCS = Path(__file__).resolve().parents[1] / "docs"


def arms() -> list[Arm]:
    return [arm(seed, name, limits) for seed in SEEDS for name, limits in ARMS.items()]


def arm(seed: int, name: str, limits: tuple[int, ...]) -> Arm:
    rungs = ",".join(
        f"{{difficulty:6,mix:{{2:1,4:1,6:1}},timeout_s:600,max_turns:{limit},steps:{MOST_STEPS}}}" for limit in limits
    )
    overrides = (
        f"rollout.groups_per_step={GROUPS}",
        f"rollout.group_size={GROUP_SIZE}",
        f"evaluation.episodes={HELD_OUT}",
        f"actors.episodes={HELD_OUT}",
        f"learner.optimizer.lr={LR}",
        f"learner.checkpoint_every={MOST_STEPS}",
        f"curriculum.stages=[{rungs}]",
    )
    return Arm(f"{name}-{seed}", seed, overrides, ("benchmarks.token_stages", "--tokens", str(TOKENS)))


def main() -> None:
    arguments = parser(__doc__, "runs/ablation-rl", SEEDS).parse_args()
    if arguments.report:
        write_report(results(arguments.work, arms()), SETTINGS, DOCS)
    else:
        run_missing(arguments.work, chosen(arms(), arguments.seed), arguments.next)


if __name__ == "__main__":
    main()
