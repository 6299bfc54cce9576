"""What is sampled next, as pure decisions: ids, episode specs, and how far sampling may run ahead.

Ids are made of stage and index alone, so that a driver which starts again admits the same episodes under the same
names, and the buffer knows them.
"""

from __future__ import annotations

import random

from klong_rl.config import StageConfig
from klong_rl.tasks.base import TaskFamily
from klong_rl.types import EpisodeSpec

OUTSTANDING = ("open", "complete", "ready")  # states of a group that is admitted and not yet leased


def training_group(family: TaskFamily, number: int, stage: StageConfig, index: int, size: int) -> list[EpisodeSpec]:
    """The `index`-th group of stage `number`: `size` attempts at one training task."""
    group = f"s{number}-g{index}"
    task = family.train(difficulty_of(number, stage, index), index)
    return [_spec(f"{group}-e{member}", group, size, number, stage, "train", task) for member in range(size)]


def stage_of(group: str) -> int:
    """The stage of a training group, by its name.

    >>> stage_of("s2-g41")
    2
    """
    return int(group.removeprefix("s").partition("-")[0])


def difficulty_of(number: int, stage: StageConfig, index: int) -> int:
    """Of the `index`-th group: the stage's own, or drawn from its mix, the same one whenever it is asked."""
    if not stage.mix:
        return stage.difficulty
    draw = random.Random(f"{number}/{index}")
    return draw.choices(list(stage.mix), weights=list(stage.mix.values()))[0]


def evaluation(family: TaskFamily, tag: str, number: int, stage: StageConfig, episodes: int) -> list[EpisodeSpec]:
    """One attempt at each of the first held-out tasks, at the settings of stage `number`, as groups of one."""
    specs = []
    for index in range(episodes):
        group = f"{evaluation_prefix(tag, number)}{index}"
        task = family.held_out(stage.difficulty, index)
        specs.append(_spec(f"{group}-e", group, 1, number, stage, "eval", task))
    return specs


def evaluation_prefix(tag: str, number: int) -> str:
    return f"eval-{tag}-s{number}-g"


def groups_to_admit(outstanding: int, steps_left: int, groups_per_step: int, max_staleness: int) -> int:
    """How many more groups may start.

    `outstanding` groups are admitted and not yet leased. With `1 + max_staleness` steps' worth of them, a group that is
    not overtaken is trained within the bound; one that others overtake may pass it, and the lease then drops it as
    stale and counts it (`windows_stale` in the metrics). The stage's own end bounds admission too.

    >>> groups_to_admit(outstanding=0, steps_left=9, groups_per_step=4, max_staleness=1)
    8
    """
    ahead = min(steps_left, 1 + max_staleness) * groups_per_step
    return max(0, ahead - outstanding)


def _spec(episode: str, group: str, size: int, number: int, stage: StageConfig, purpose: str, task) -> EpisodeSpec:
    return EpisodeSpec(
        id=episode,
        group=group,
        group_size=size,
        stage=number,
        purpose=purpose,
        task=task,
        timeout_s=stage.timeout_s,
        max_turns=stage.max_turns,
    )
