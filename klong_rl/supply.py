"""The groups of training episodes that a run keeps going: admitted as far ahead of learning as `Ahead` has it.

Groups that an earlier stage, or an earlier life of the learner, left over are trained too, in later steps: they count
as sampled ahead until they are leased. A baseline never mixes stages, since a group is of one. The late members of a
group that was closed early don't count: they are leased beside the groups that a step waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from klong_rl.admission import Admission
from klong_rl.buffer import Buffer, Result
from klong_rl.closing import EarlyClosing, is_rest
from klong_rl.config import RolloutConfig, StageConfig
from klong_rl.pacing import Ahead
from klong_rl.schedule import OUTSTANDING, training_group
from klong_rl.tasks.base import TaskFamily

LOOK_AT = 64  # groups, in one look at what became of them: so that a look costs the same however many there are


class Supply:
    """`find` once, `begin` each stage, `admit` while waiting for a step's groups (which may close early), `leased` once
    they came.
    """

    def __init__(
        self,
        config: RolloutConfig,
        buffer: Buffer,
        family: TaskFamily,
        admission: Admission,
        ahead: Ahead,
        clock: Callable[[], float] = time.time,  # as that of Redis: Unix seconds
    ) -> None:
        self._config = config
        self._buffer = buffer
        self._family = family
        self._admission = admission
        self._ahead = ahead
        self._clock = clock
        self._closing = EarlyClosing(config.close_early, buffer, clock)
        # Admitted, and not known to be leased or gone; with the time if it was admitted here.
        self._outstanding: dict[str, float | None] = {}
        self._stage = 0
        self._settings = StageConfig()
        self._next_index = 0

    async def find(self) -> None:
        """Take up the groups that are in the buffer already."""
        running = [each.group for each in await self._buffer.in_progress() if each.purpose == "train"]
        found = running + await self._buffer.ready_groups()
        self._outstanding = dict.fromkeys(group for group in found if not is_rest(group))

    def begin(self, stage: int, settings: StageConfig) -> None:
        """From here on admit groups of `stage`. Those that the buffer knows come first, and are known again."""
        self._stage, self._settings, self._next_index = stage, settings, 0

    async def extend(self, settings: StageConfig) -> None:
        """Give the limits of a later stage to what still runs; a group of which a member has ended keeps its own."""
        await self._look(list(self._outstanding))  # what was leased may be archived and forgotten by now
        for group in self._outstanding:
            await self._buffer.extend(group, settings.timeout_s, settings.max_turns)

    async def admit(self, steps_left: int) -> None:
        """Admit what may start now; `steps_left`, the most steps of this stage to come, bounds it too."""
        states = await self._look(list(islice(self._outstanding, LOOK_AT)))
        await self._closing.look([group for group, state in states.items() if state == "open"])
        size, queued = self._config.group_size, await self._buffer.n_queued()
        while self._ahead.groups_to_admit(len(self._outstanding), queued, steps_left) > 0:
            specs = training_group(self._family, self._stage, self._settings, self._next_index, size)
            if not await self._admission.admit(specs):
                return  # this group comes again: one that lacks a member would never be complete
            self._next_index += 1
            group = specs[0].group
            # A group of an earlier launch may be used up already: the buffer knows.
            known = (await self._buffer.group_states([group])).get(group)
            if known in OUTSTANDING and group not in self._outstanding:
                self._outstanding[group] = self._clock()
                queued += size

    def leased(self, results: Mapping[str, Sequence[Result]]) -> list[float]:
        """These groups are being trained: the seconds that those admitted here took, to their last verdict."""
        seconds = []
        for group, members in results.items():
            admitted, ends = self._outstanding.pop(group, None), [member.ended for member in members if member.ended]
            if admitted is not None and ends:
                seconds.append(max(0.0, max(ends) - admitted))  # two clocks
        return seconds

    async def _look(self, groups: Sequence[str]) -> dict[str, str]:
        """The states of `groups`. Those that were leased, or whose windows were all stale, are forgotten; the others
        are looked at last, next time.
        """
        states = await self._buffer.group_states(groups)
        for group in groups:
            admitted = self._outstanding.pop(group)
            if states.get(group) in OUTSTANDING:
                self._outstanding[group] = admitted
        return states

    def metrics(self) -> dict[str, float]:
        return self._closing.metrics()
