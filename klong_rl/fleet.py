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
from typing import Any

from klong_rl.actor_calls import ActorFailure, Calls
from klong_rl.buffer import Buffer
from klong_rl.config import RunConfig
from klong_rl.errors import in_short
from klong_rl.monitor.fleet_file import sandboxes_of
from klong_rl.phases import slowest
from klong_rl.pools import Member, Pools

START_DEADLINE_S = 600.0  # an engine compiles and loads within it
REMADE_S = 300.0  # for Ray to end a process and make it again, on a machine that is busy
PUBLISH_DEADLINE_S = 180.0
SCORE_DEADLINE_S = 600.0  # behind whatever the engine is busy with
STATUS_DEADLINE_S = 120.0  # an actor that doesn't even say how it is for so long hangs
STOP_DEADLINE_S = 90.0
STEADY_S = 30.0  # a few episodes: whoever ran for so long was not hindered by its settings or its machine
QUICK_DEATHS = 5  # in a row; by then more of the same won't help
LOOK_S = 0.05


class Fleet:
    """`rollout_class` and `judge_class` are plain classes (actors.rollout, actors.judge), handed in by the launcher.
    `sizes`: actors of each pool, if not as configured.
    """

    def __init__(
        self,
        config: RunConfig,
        settings: Any,
        rollout_class: type,
        judge_class: type,
        buffer: Buffer,
        warn: Callable[[str], None],
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        import ray

        self._ray = ray
        self._calls = Calls()
        self._buffer, self._warn = buffer, warn
        self._pools = Pools(config, settings, rollout_class, judge_class)
        sizes = sizes or {"rollout": config.actors.count, "judge": config.judge.count}
        self._members = [self._pools.make(pool) for pool, n in sizes.items() for _ in range(n)]
        self._keepers: dict[str, asyncio.Task] = {}
        self._held = False
        self._gave_up = ""
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
        self._keepers = {member.name: asyncio.create_task(self._keep(member)) for member in self._members}
        while not all(member.at_work_since for member in self._members):
            self.check()
            await asyncio.sleep(LOOK_S)

    def check(self) -> None:
        """Raise ActorFailure if an actor can't be kept alive."""
        for keeper in self._keepers.values():
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
        calls = (
            self._calls.ask(member, "give log-probs", SCORE_DEADLINE_S, "logprobs", tokens_T) for member in engines
        )
        return [answer for answer in await asyncio.gather(*calls) if answer is not None]

    async def status(self) -> dict[str, Any]:
        """Over all actors at work: how many by pool, episodes under way, tokens sampled so far, warnings since the last
        look; the load of each engine (klong_rl.pacing.EngineLook), and the sandboxes by host and state.
        """
        members = self._at_work()
        calls = (self._calls.ask(member, "give its status", STATUS_DEADLINE_S, "status") for member in members)
        given = zip(members, await asyncio.gather(*calls), strict=True)
        named = [(member, answer) for member, answer in given if answer is not None]
        answers = [answer for _, answer in named]
        held = [("running" if member.has_engine else "judging", answer["sandboxes"]) for member, answer in named]
        return {
            "actors": Counter(member.pool for member in members),
            "episodes": sum(answer.get("episodes", 0) for answer in answers),
            "sampled_tokens": sum(answer.get("sampled_tokens", 0) for answer in answers),
            "engines": [answer["load"] for answer in answers if "load" in answer],
            "sandboxes": sandboxes_of(held),
            "warnings": [text for answer in answers for text in answer["warnings"]],
        }

    async def allow(self, slots: Mapping[str, int]) -> None:
        """How many episodes each life of an actor may run at once; who has heard so already isn't told again."""
        slots = dict.fromkeys(slots, 0) if self._held else slots
        told = {member.owner: member for member in self._at_work() if member.has_engine and member.owner in slots}
        changed = [(member, slots[owner]) for owner, member in told.items() if self._slots.get(owner) != slots[owner]]
        self._slots = dict(slots)
        await asyncio.gather(
            *(self._calls.ask(member, f"run {n} episodes", STATUS_DEADLINE_S, "allow", n) for member, n in changed)
        )

    def hold(self, held: bool) -> None:
        """While held, no actor claims an episode: told by the next `allow`, and each life before it is set to work."""
        self._held = held

    @property
    def started(self) -> bool:
        return bool(self._keepers)

    def sizes(self) -> dict[str, int]:
        """Actors of each pool, but for those that are let go of."""
        counts = Counter(member.pool for member in self._members if not member.leaving)
        return {pool: counts[pool] for pool in ("rollout", "judge")}

    def settled(self) -> bool:
        """Whether all are at work, and none is being let go of."""
        return all(member.at_work_since is not None and not member.leaving for member in self._members)

    def gave_up(self) -> str:
        """Why an actor that scaling asked for is not there, since this was asked last."""
        reason, self._gave_up = self._gave_up, ""
        return reason

    async def scale(self, rollout: int, judge: int) -> None:
        """Bring the pools to these sizes: the newest go first, and what they hold is handed on. Returns when those that
        go are gone; those that come are at work when `settled` says so.
        """
        going: list[Member] = []
        for pool, wanted in (("rollout", rollout), ("judge", judge)):
            there = [member for member in self._members if member.pool == pool and not member.leaving]
            going += there[wanted:]
            for _ in range(wanted - len(there)):
                member = self._pools.make(pool, is_extra=True)
                self._members.append(member)
                self._keepers[member.name] = asyncio.create_task(self._try_out(member))
        for member in going:
            member.leaving = True
        await asyncio.gather(*(self._let_go(member) for member in going))
        await self._share_judge_model()

    async def _try_out(self, member: Member) -> None:
        """As `_keep`; but one that never was at work ends itself and not the run."""
        try:
            await self._keep(member)
        except ActorFailure as failure:
            if member.was_at_work:
                raise
            self._gave_up = str(failure)
            self._warn(f"{member.name} could not be started and is given up: {failure}")
            self._members.remove(member)
            del self._keepers[member.name]
            self._pools.remove(member)

    async def _let_go(self, member: Member) -> None:
        """Its own clean-up first, which keeps a snapshot of each episode; then whatever it held goes to the others."""
        if member.at_work_since is not None:
            try:
                await self._calls.call(member, "stop", STOP_DEADLINE_S, "stop")
            except ActorFailure as failure:
                self._warn(f"{failure}; it is ended")
        keeper = self._keepers.pop(member.name)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        self._pools.remove(member)
        await self._buffer.abandon(member.owner, f"{member.name} was let go of")
        self._members.remove(member)

    async def _share_judge_model(self) -> None:
        """The bounds of the judge model are the run's: each judge has its share of them."""
        judges = [member for member in self._at_work() if member.pool == "judge"]
        calls = (
            self._calls.ask(member, "take its share", STATUS_DEADLINE_S, "share", self._share) for member in judges
        )
        await asyncio.gather(*calls)

    @property
    def _share(self) -> float:
        return 1 / self.sizes()["judge"]

    async def stop(self) -> list[str]:
        """Let every actor clean up, then end it. What could not clean up in time is ended all the same, and told."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        ends = [self._calls.call(member, "stop", STOP_DEADLINE_S, "stop") for member in self._at_work()]
        ended = await asyncio.gather(*ends, return_exceptions=True)
        for member in self._members:
            self._pools.remove(member)
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
                if member.leaving:
                    return
                error: Exception = ActorFailure(f"{member.name} ended by itself")
            except (ActorFailure, self._ray.exceptions.RayError) as failure:
                if member.leaving:
                    return
                error = member.fault or failure
            died_at, began_at, member.at_work_since = time.monotonic(), member.at_work_since, None
            n_held, why = await self._bury(member, error), in_short(error).removeprefix(f"{member.name} ")
            quick = 1 if began_at is not None and died_at - began_at >= STEADY_S else quick + 1
            if quick == QUICK_DEATHS or (member.is_extra and not member.was_at_work):
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
                if self._calls.is_not_yet(failure):
                    if time.monotonic() - began > REMADE_S:
                        raise
                elif was_told or not self._calls.is_death(failure):
                    raise
                else:
                    was_told = True  # it may be of the former process, which was ended from here
                await asyncio.sleep(LOOK_S)
        taken = 0
        while member.has_engine and taken != self.version:
            weights, version = self._newest
            await self._calls.call(member, f"take version {version}", PUBLISH_DEADLINE_S, "publish", weights, version)
            taken = version
        if member.has_engine and self._held:
            await self._calls.call(member, "begin no episode", STATUS_DEADLINE_S, "allow", 0)
        if not member.has_engine:  # it may be another one by now
            await self._calls.call(member, "take its share", STATUS_DEADLINE_S, "share", self._share)
        member.at_work_since, member.was_at_work = time.monotonic(), True

    async def _start(self, member: Member) -> None:
        own = member.life if member.has_engine else self._share
        await self._calls.call(member, "start", START_DEADLINE_S, "start", member.owner, own)

    async def _bury(self, member: Member, error: Exception) -> int:
        """End what is left of a life; how many episodes others go on with."""
        if not self._calls.is_death(error) and member.fault is None:
            self._calls.end_process(member)
        return await self._buffer.abandon(member.owner, f"{member.name} died")

    async def _take_newest(self, member: Member) -> dict[str, float] | None:
        weights, version = self._newest
        return await self._calls.ask(member, f"take version {version}", PUBLISH_DEADLINE_S, "publish", weights, version)

    def _at_work(self) -> list[Member]:
        return [each for each in self._members if each.at_work_since is not None and not each.leaving]
