"""The actors of a run as the driver sees them: started, given new weights, and brought back when they die.

    start ─▶ the newest weights ─▶ run ──▶ ended: its process was killed, its engine died, it hung
      ▲        (an engine)                   │ what it ran goes back to the queue, what it judged to judging
      └── Ray makes its process again ◀──────┘

Each actor goes through its lives in a task of its own, beside the training; `check` raises only for one that can't be
kept alive. A life has a name of its own ("rollout-0.3"), under which the buffer knows what it holds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from klong_rl.buffer import Buffer
from klong_rl.config import RunConfig
from klong_rl.errors import AlreadyStarted, in_short
from klong_rl.gpus import reserve
from klong_rl.phases import slowest

START_DEADLINE_S = 600.0  # an engine compiles and loads within it
REMADE_S = 300.0  # for Ray to end a process and make it again, on a machine that is busy
PUBLISH_DEADLINE_S = 180.0
SCORE_DEADLINE_S = 600.0  # behind whatever the engine is busy with
STATUS_DEADLINE_S = 120.0  # an actor that doesn't even say how it is for so long hangs
STOP_DEADLINE_S = 90.0
STEADY_S = 30.0  # a few episodes: whoever ran for so long was not hindered by its settings or its machine
QUICK_DEATHS = 5  # in a row; by then more of the same won't help
LOOK_S = 0.05


class ActorFailure(Exception):
    """An actor ended, or didn't answer in time. Says which, and what was asked of it."""


@dataclass
class Member:
    """One actor through its lives."""

    name: str
    actor: Any
    has_engine: bool
    life: int = 0
    at_work_since: float | None = None  # monotonic clock
    fault: Exception | None = None  # why this life was ended from here

    @property
    def owner(self) -> str:
        """The name of this life."""
        return f"{self.name}.{self.life}"


class Fleet:
    """`rollout_class` and `judge_class` are plain classes (actors.rollout, actors.judge), handed in by the launcher."""

    def __init__(
        self,
        config: RunConfig,
        settings: Any,
        rollout_class: type,
        judge_class: type,
        buffer: Buffer,
        warn: Callable[[str], None],
    ) -> None:
        import ray

        self._ray = ray
        self._buffer, self._warn = buffer, warn
        engine, judge = config.actors, config.judge
        rollouts = ray.remote(rollout_class).options(
            num_cpus=engine.num_cpus, num_gpus=engine.num_gpus, max_restarts=-1, **reserve(engine)
        )
        judges = ray.remote(judge_class).options(num_cpus=judge.num_cpus, max_restarts=-1)
        self._members = [
            Member(f"rollout-{i}", rollouts.remote(settings, i), has_engine=True) for i in range(engine.count)
        ]
        self._members += [Member(f"judge-{i}", judges.remote(settings), has_engine=False) for i in range(judge.count)]
        self._keepers: list[asyncio.Task] = []
        self._slots: dict[str, int] = {}  # as last told, by life
        self._newest: tuple[Any, int] = (None, 0)  # weights, as the learner published them, and their version

    @property
    def version(self) -> int:
        """The newest policy version that was published here."""
        return self._newest[1]

    async def start(self) -> None:
        """Set all to work, with the weights published so far; nothing to do where they are. Raises ActorFailure."""
        if self._keepers:
            return
        # Whatever is held now is held by an earlier launch, whose actors may have outlived it for a while.
        await self._buffer.abandon("", "the run was launched again")
        self._keepers = [asyncio.create_task(self._keep(member)) for member in self._members]
        while not all(member.at_work_since for member in self._members):
            self.check()
            await asyncio.sleep(LOOK_S)

    def check(self) -> None:
        """Raise ActorFailure if an actor can't be kept alive."""
        for keeper in self._keepers:
            if keeper.done():
                keeper.result()

    async def publish(self, weights: Any, version: int) -> dict[str, float]:
        """Give every engine what the learner published; seconds of each phase, of the slowest engine.

        One that can't take it is replaced, and takes it on its way.
        """
        self._newest = (weights, version)
        takes = (self._take_newest(member) for member in self._at_work() if member.has_engine)
        return slowest(answer for answer in await asyncio.gather(*takes) if answer)

    async def logprobs(self, tokens_T: Any) -> list[Any]:
        """Log-prob of each token but the first, float32 [T-1], of every engine that is at work."""
        engines = [member for member in self._at_work() if member.has_engine]
        calls = (self._ask(member, "give log-probs", SCORE_DEADLINE_S, "logprobs", tokens_T) for member in engines)
        return [answer for answer in await asyncio.gather(*calls) if answer is not None]

    async def status(self) -> dict[str, Any]:
        """Over all actors at work: how many by pool, episodes under way, tokens sampled so far, warnings since the last
        look; and the load of each engine (klong_rl.pacing.EngineLook).
        """
        members = self._at_work()
        calls = (self._ask(member, "give its status", STATUS_DEADLINE_S, "status") for member in members)
        answers = [answer for answer in await asyncio.gather(*calls) if answer is not None]
        return {
            "actors": Counter("rollout" if member.has_engine else "judge" for member in members),
            "episodes": sum(answer.get("episodes", 0) for answer in answers),
            "sampled_tokens": sum(answer.get("sampled_tokens", 0) for answer in answers),
            "engines": [answer["load"] for answer in answers if "load" in answer],
            "warnings": [text for answer in answers for text in answer["warnings"]],
        }

    async def allow(self, slots: Mapping[str, int]) -> None:
        """How many episodes each life of an actor may run at once; who has heard so already isn't told again."""
        told = {member.owner: member for member in self._at_work() if member.has_engine and member.owner in slots}
        changed = [(member, slots[owner]) for owner, member in told.items() if self._slots.get(owner) != slots[owner]]
        self._slots = dict(slots)
        await asyncio.gather(
            *(self._ask(member, f"run {n} episodes", STATUS_DEADLINE_S, "allow", n) for member, n in changed)
        )

    async def stop(self) -> list[str]:
        """Let every actor clean up, then end it. What could not clean up in time is ended all the same, and told."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        ends = [self._call(member, "stop", STOP_DEADLINE_S, "stop") for member in self._at_work()]
        ended = await asyncio.gather(*ends, return_exceptions=True)
        for member in self._members:
            self._ray.kill(member.actor)
        return [str(complaint) for complaint in ended if complaint is not None]

    async def _keep(self, member: Member) -> None:
        """One life after another. Raises ActorFailure when QUICK_DEATHS in a row came before STEADY_S."""
        quick, last_words, died = 0, "", 0.0
        while True:
            member.life, member.fault = member.life + 1, None
            try:
                await self._bring_up(member)
                if last_words:
                    self._warn(f"{member.name} {last_words}, started again in {time.monotonic() - died:.0f} s")
                await member.actor.run.remote()
                error: Exception = ActorFailure(f"{member.name} ended by itself")
            except (ActorFailure, self._ray.exceptions.RayError) as failure:
                error = member.fault or failure
            died_at, began_at, member.at_work_since = time.monotonic(), member.at_work_since, None
            n_held, why = await self._bury(member, error), in_short(error).removeprefix(f"{member.name} ")
            quick = 1 if began_at is not None and died_at - began_at >= STEADY_S else quick + 1
            if quick == QUICK_DEATHS:
                raise ActorFailure(f"{member.name} ended {quick} times within {STEADY_S:.0f} s: {why}") from error
            if began_at is None:
                self._warn(f"{member.name} ended before it was at work and is tried again ({why})")
            else:
                died, last_words = died_at, f"died ({why}): {n_held} episodes go on"

    async def _bring_up(self, member: Member) -> None:
        """From a fresh process to one at work; an engine has the newest weights then."""
        began, was_told = time.monotonic(), False
        while True:
            try:
                await self._start(member)
                break
            except ActorFailure as failure:
                if self._is_not_yet(failure):
                    if time.monotonic() - began > REMADE_S:
                        raise
                elif was_told or not self._is_death(failure):
                    raise
                else:
                    was_told = True  # it may be of the former process, which was ended from here
                await asyncio.sleep(LOOK_S)
        taken = 0
        while member.has_engine and taken != self.version:
            weights, version = self._newest
            await self._call(member, f"take version {version}", PUBLISH_DEADLINE_S, "publish", weights, version)
            taken = version
        member.at_work_since = time.monotonic()

    async def _start(self, member: Member) -> None:
        seeded = (member.life,) if member.has_engine else ()
        await self._call(member, "start", START_DEADLINE_S, "start", member.owner, *seeded)

    async def _bury(self, member: Member, error: Exception) -> int:
        """End what is left of a life; how many episodes others go on with."""
        if not self._is_death(error) and member.fault is None:
            self._end_process(member)
        return await self._buffer.abandon(member.owner, f"{member.name} died")

    async def _take_newest(self, member: Member) -> dict[str, float] | None:
        weights, version = self._newest
        return await self._ask(member, f"take version {version}", PUBLISH_DEADLINE_S, "publish", weights, version)

    async def _ask(self, member: Member, what: str, deadline_s: float, method: str, *args: Any) -> Any | None:
        """The answer of an actor at work; None from one that then isn't any more: whoever fails here is replaced."""
        life = member.life
        try:
            return await self._call(member, what, deadline_s, method, *args)
        except ActorFailure as failure:
            is_known = member.life != life or member.at_work_since is None or member.fault is not None
            if not is_known and not self._is_death(failure):
                member.fault = failure
                self._end_process(member)
            return None

    async def _call(self, member: Member, what: str, deadline_s: float, method: str, *args: Any) -> Any:
        """Raises ActorFailure."""
        try:
            async with asyncio.timeout(deadline_s):
                return await getattr(member.actor, method).remote(*args)
        except TimeoutError as error:
            raise ActorFailure(f"{member.name} did not {what} within {deadline_s:.0f} s") from error
        except self._ray.exceptions.RayError as error:
            raise ActorFailure(f"{member.name} could not {what}: {in_short(error)}") from error

    def _at_work(self) -> list[Member]:
        return [member for member in self._members if member.at_work_since is not None]

    def _is_death(self, error: Exception) -> bool:
        """True if `error`, or what it came of, says that the process is gone: then Ray makes it again by itself."""
        return isinstance(error.__cause__ or error, self._ray.exceptions.RayActorError)

    def _is_not_yet(self, failure: ActorFailure) -> bool:
        """True while Ray makes the process of this life, or the one of the life before has not ended yet."""
        return isinstance(failure.__cause__, (self._ray.exceptions.ActorUnavailableError, AlreadyStarted))

    def _end_process(self, member: Member) -> None:
        """Ray then makes it again."""
        self._ray.kill(member.actor, no_restart=False)
