"""Evaluation on held-out tasks: before any training, and before and after each stage, at that stage's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from klong_rl.admission import Admission
from klong_rl.buffer import Buffer
from klong_rl.checkpoints import RunState
from klong_rl.config import RunConfig
from klong_rl.errors import Stuck
from klong_rl.fleet import Fleet
from klong_rl.results import RunLog, mean
from klong_rl.schedule import OUTSTANDING, evaluation, evaluation_prefix
from klong_rl.tasks.base import TaskFamily

LOOK_S = 0.1  # between two looks at the buffer while waiting

Wanted = tuple[str, int]  # a tag, "cold", "before" or "after", and a stage


class HeldOut:
    """Mean rewards go into `state.evals`; `note` is called after, to keep them. Deadlines are on `clock`."""

    def __init__(
        self,
        config: RunConfig,
        state: RunState,
        buffer: Buffer,
        fleet: Fleet,
        family: TaskFamily,
        admission: Admission,
        log: RunLog,
        note: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._state = state
        self._buffer = buffer
        self._fleet = fleet
        self._family = family
        self._admission = admission
        self._log = log
        self._note = note
        self._clock = clock

    async def evaluate(self, wanted: list[Wanted]) -> None:
        """Mean reward for each of `wanted` that has none yet; all at once, ahead of training."""
        state = self._state
        if state.step == 0:  # before any training, the weights are the cold start's
            cold = {key.removeprefix("cold"): value for key, value in state.evals.items()}
            state.evals |= {f"before{key}": cold[key] for tag, n in wanted if (key := f"-s{n}") in cold}
        wanted = [(tag, number) for tag, number in wanted if f"{tag}-s{number}" not in state.evals]
        until = self._clock() + self._config.rollout.step_timeout_s
        for tag, number in wanted:
            await self._admit(tag, number, until)
        for tag, number in wanted:
            await self._score(tag, number, until)
        if wanted:
            self._note()

    async def _admit(self, tag: str, number: int, until: float) -> None:
        # Between stages the weights of a step are those of its checkpoint, whichever life comes back to it.
        stage = self._config.curriculum.stages[number - 1]
        specs = evaluation(self._family, self._tag(tag), number, stage, self._config.evaluation.episodes)
        while not await self._admission.admit(specs):
            self._wait_on(until, f"evaluation {tag} of stage {number} was not admitted, the buffer being full,")
            await asyncio.sleep(LOOK_S)

    async def _score(self, tag: str, number: int, until: float) -> None:
        episodes = self._config.evaluation.episodes
        self._log.phase(f"evaluating on held-out tasks: {tag} stage {number}", self._state.curriculum.stage)
        prefix = evaluation_prefix(self._tag(tag), number)
        scores = await self._scores(prefix, episodes, until)
        if not scores:
            raise Stuck(f"none of the {episodes} episodes of {prefix} could be scored: {await self._drops()}")
        if len(scores) < episodes:
            self._log.warn(f"{prefix}: {len(scores)} of {episodes} episodes scored: {await self._drops()}")
        self._state.evals[f"{tag}-s{number}"] = mean(scores)

    def _tag(self, tag: str) -> str:
        return f"{tag}-step{self._state.step}"

    async def _drops(self) -> str:
        return f"episodes dropped so far: {(await self._buffer.counts()).drops}"

    async def _scores(self, prefix: str, episodes: int, until: float) -> list[float]:
        """Scores of all evaluation groups under `prefix`, once all are closed; dropped episodes have none."""
        groups = [f"{prefix}{index}" for index in range(episodes)]
        while True:
            states = await self._buffer.group_states(groups)
            if not any(state in OUTSTANDING for state in states.values()):
                return list((await self._buffer.scores(prefix)).values())
            self._wait_on(until, f"evaluation {prefix} did not end")
            await asyncio.sleep(LOOK_S)

    def _wait_on(self, until: float, what: str) -> None:
        """Raise what ended an actor; Stuck past `until`."""
        self._fleet.check()
        if self._clock() > until:
            raise Stuck(f"{what} within rollout.step_timeout_s={self._config.rollout.step_timeout_s:g}")
