"""Calls of the actors of a fleet: each with a deadline, each failure in words, and a process that fails is ended."""

from __future__ import annotations

import asyncio
from typing import Any

from klong_rl.errors import AlreadyStarted, in_short
from klong_rl.pools import Member


class ActorFailure(Exception):
    """An actor ended, or didn't answer in time. Says which, and what was asked of it."""


class Calls:
    """What is asked of a `Member`. A process that is ended here, Ray makes again."""

    def __init__(self) -> None:
        import ray

        self._ray = ray

    async def ask(self, member: Member, what: str, deadline_s: float, method: str, *args: Any) -> Any | None:
        """The answer of an actor at work; None from one that then isn't any more: whoever fails here is replaced."""
        life = member.life
        try:
            return await self.call(member, what, deadline_s, method, *args)
        except ActorFailure as failure:
            is_known = member.life != life or member.at_work_since is None or member.fault or member.leaving
            if not is_known and not self.is_death(failure):
                member.fault = failure
                self.end_process(member)
            return None

    async def call(self, member: Member, what: str, deadline_s: float, method: str, *args: Any) -> Any:
        """Raises ActorFailure."""
        try:
            async with asyncio.timeout(deadline_s):
                return await getattr(member.actor, method).remote(*args)
        except TimeoutError as error:
            raise ActorFailure(f"{member.name} did not {what} within {deadline_s:.0f} s") from error
        except self._ray.exceptions.RayError as error:
            raise ActorFailure(f"{member.name} could not {what}: {in_short(error)}") from error

    def is_death(self, error: Exception) -> bool:
        """True if `error`, or what it came of, says that the process is gone: then Ray makes it again by itself."""
        return isinstance(error.__cause__ or error, self._ray.exceptions.RayActorError)

    def is_not_yet(self, failure: ActorFailure) -> bool:
        """True while Ray makes the process of this life, or the one of the life before has not ended yet."""
        return isinstance(failure.__cause__, (self._ray.exceptions.ActorUnavailableError, AlreadyStarted))

    def end_process(self, member: Member) -> None:
        self._ray.kill(member.actor, no_restart=False)
