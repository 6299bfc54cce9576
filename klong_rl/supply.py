"""The groups of training episodes that a run keeps going: admitted as far ahead of learning as the staleness allows.

Groups that an earlier stage, or an earlier life of the learner, left over are trained too, in later steps: they count
as sampled ahead until they are leased. A baseline never mixes stages, since a group is of one.
"""

from __future__ import annotations

from klong_rl.admission import Admission
from klong_rl.buffer import Buffer
from klong_rl.config import RolloutConfig, StageConfig
from klong_rl.schedule import OUTSTANDING, groups_to_admit, training_group
from klong_rl.tasks.base import TaskFamily


class Supply:
    """`find` once, `begin` each stage, `admit` while waiting for a step's groups."""

    def __init__(self, config: RolloutConfig, buffer: Buffer, family: TaskFamily, admission: Admission) -> None:
        self._config = config
        self._buffer = buffer
        self._family = family
        self._admission = admission
        self._outstanding: list[str] = []  # admitted, perhaps leased since
        self._stage = 0
        self._settings = StageConfig()
        self._next_index = 0

    async def find(self) -> None:
        """Take up the groups that are in the buffer already."""
        running = [each.group for each in await self._buffer.in_progress() if each.purpose == "train"]
        self._outstanding = list(dict.fromkeys(running + await self._buffer.ready_groups()))

    def begin(self, stage: int, settings: StageConfig) -> None:
        """From here on admit groups of `stage`. Those that the buffer knows come first, and are known again."""
        self._stage, self._settings, self._next_index = stage, settings, 0

    async def extend(self, settings: StageConfig) -> None:
        """Give the limits of a later stage to what still runs; a group of which a member has ended keeps its own."""
        await self._look()  # what was leased may be archived and forgotten by now
        for group in self._outstanding:
            await self._buffer.extend(group, settings.timeout_s, settings.max_turns)

    async def admit(self, steps_left: int) -> None:
        """Admit what may start now; `steps_left`, the most steps of this stage to come, bounds it too."""
        await self._look()
        config = self._config
        while groups_to_admit(len(self._outstanding), steps_left, config.groups_per_step, config.max_staleness) > 0:
            specs = training_group(self._family, self._stage, self._settings, self._next_index, config.group_size)
            if not await self._admission.admit(specs):
                return  # this group comes again: one that lacks a member would never be complete
            self._next_index += 1
            group = specs[0].group
            # A group of an earlier launch may be used up already: the buffer knows.
            known = (await self._buffer.group_states([group])).get(group)
            if known in OUTSTANDING and group not in self._outstanding:
                self._outstanding.append(group)

    async def _look(self) -> None:
        """Forget those that were leased, or whose windows were all stale."""
        states = await self._buffer.group_states(self._outstanding)
        self._outstanding = [group for group in self._outstanding if states.get(group) in OUTSTANDING]
