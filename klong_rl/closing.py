"""Closing a group before its last episodes have ended, so that the learner need not wait for them.

A group is closed early (`rollout.close_early`) once at least `members` of its episodes have a verdict and each of the
others has run, since it was first claimed, for longer than `patience` times the median of those that came in. An
episode that wasn't claimed yet isn't late: its group waits for it. What becomes of the late ones is `late`:

`join`  They go on, as a group of their own (its name ends in "-late"), each to be set against the scores that had come
        in when its group was closed. They are trained when all of them have come, beside the groups that a step waits
        for: no step waits for them, and they don't count as sampled ahead. Their own limits end them, and what got too
        stale by then is dropped with that reason.
`drop`  They are dropped, with that as the reason.

What each does to the gradient is in docs/curriculum.md. The buffer's transitions are atomic and act once, so a driver
that dies between two of them, or looks twice, changes nothing twice; the next one finds the group as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from klong_rl.buffer import Buffer
from klong_rl.buffer.records import Age
from klong_rl.config import CloseEarlyConfig

LATE = ("join", "drop")
LOOK_S = 1.0  # a late episode is late by more
FINAL = ("judged", "dropped")
REASON = "late: its group was closed without it"


def is_overdue(ages: Sequence[Age], rule: CloseEarlyConfig) -> bool:
    """Whether to close a group with these members now. Pure."""
    came_in = [age.seconds for age in ages if age.state == "judged"]
    late = [age.seconds for age in ages if age.state not in FINAL]
    if not rule.members or not late or len(came_in) < rule.members:
        return False
    return min(late) > rule.patience * median(came_in)


def rest_of(group: str) -> str:
    """The name of the group that the late members become."""
    return f"{group}-late"


def is_rest(group: str) -> bool:
    return group.endswith("-late")


class EarlyClosing:
    """`look` at open groups now and then. `clock`: seconds of any clock that only grows."""

    def __init__(self, rule: CloseEarlyConfig, buffer: Buffer, clock: Callable[[], float]) -> None:
        self._rule = rule
        self._buffer = buffer
        self._clock = clock
        self._next = float("-inf")
        self._groups = self._episodes = 0

    async def look(self, groups: Sequence[str]) -> None:
        """Close those of `groups`, open ones, that are overdue. Does nothing where it looked less than LOOK_S ago."""
        if not self._rule.members or self._clock() < self._next:
            return
        self._next = self._clock() + LOOK_S
        for group in groups:
            ages = await self._buffer.ages(group)
            if not is_overdue(ages, self._rule):
                continue
            late = [age.episode for age in ages if age.state not in FINAL]
            if self._rule.late == "join":
                await self._buffer.part_group(group, rest_of(group), self._rule.members)
            else:
                for episode in late:
                    await self._buffer.drop(episode, REASON)
            self._groups, self._episodes = self._groups + 1, self._episodes + len(late)

    def metrics(self) -> dict[str, float]:
        """Since this life of the learner began; nothing where groups aren't closed early."""
        return {"groups_closed_early": self._groups, "episodes_late": self._episodes} if self._rule.members else {}
