"""On which of several Docker hosts a new sandbox is made: where the fewest are, among those that answer and have room.

All sandboxes on a host count, whichever run they are of, but those that wait in a pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from klong_rl.seldom import Seldom
from sandboxes.base import HostAway, InfrastructureFailure
from sandboxes.host import CREATE_S, DockerHost, Look, is_snapshot

log = logging.getLogger(__name__)

PASS_OVER_S = 10.0  # a host that did not answer: the next creations don't wait for it
LOOK_EVERY_S = 1.0  # while all hosts are full


def least_loaded(load: Mapping[str, int], most: int) -> str | None:
    """The host with the fewest sandboxes, the first of equals; None where each has `most`. `most` 0: no bound.

    >>> least_loaded({"a": 3, "b": 2, "c": 2}, most=3), least_loaded({"a": 3}, most=3)
    ('b', None)
    """
    room = {host: count for host, count in load.items() if not most or count < most}
    return min(room, key=room.__getitem__, default=None)


class Placement:
    """Chooses among `hosts`, each of which holds `most` sandboxes at most; 0 sets no bound."""

    def __init__(self, hosts: Sequence[DockerHost], most: int) -> None:
        self._hosts = {host.where: host for host in hosts}
        self._most = most
        self._placing: Counter[str] = Counter()  # chosen, and not made yet
        self._away_until: dict[str, float] = {}
        self._away = Seldom()

    @asynccontextmanager
    async def choose(self, image: str) -> AsyncIterator[DockerHost]:
        """A host for one creation, which is made in the block. Raises InfrastructureFailure where none has room."""
        if len(self._hosts) == 1 and not self._most:
            yield next(iter(self._hosts.values()))
            return
        where = await self._wait_for_room(image)
        self._placing[where] += 1
        try:
            yield self._hosts[where]
        finally:
            self._placing[where] -= 1

    async def _wait_for_room(self, image: str) -> str:
        """Within CREATE_S. Raises HostAway where the hosts that might do don't answer."""
        give_up = time.monotonic() + CREATE_S
        while True:
            looks = await self._look(image)
            where = await self._pick(image, looks)
            if where is not None:
                return where
            if time.monotonic() > give_up:
                raise self._nowhere(image, looks)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, image: str) -> dict[str, Look]:
        """Of the hosts that answer. One that lately did not is left out, unless none else is there to ask."""
        now = time.monotonic()
        asked = [where for where in self._hosts if self._away_until.get(where, now) <= now] or list(self._hosts)
        answers = await asyncio.gather(*(self._hosts[where].look(image) for where in asked), return_exceptions=True)
        looks = {}
        for where, answer in zip(asked, answers, strict=True):
            if isinstance(answer, InfrastructureFailure):
                self._away_until[where] = time.monotonic() + PASS_OVER_S
                if self._away.due():
                    log.warning("a Docker host is passed over: %s", answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                looks[where] = answer
        return looks

    async def _pick(self, image: str, looks: Mapping[str, Look]) -> str | None:
        """For a snapshot a host that has it; where those are full, one that gets a copy."""
        load = {where: look.sandboxes + self._placing[where] for where, look in looks.items()}
        if not is_snapshot(image):
            return least_loaded(load, self._most)
        holders = [where for where, look in looks.items() if look.has_image]
        if not holders and len(looks) == len(self._hosts):
            raise InfrastructureFailure(f"none of {', '.join(looks)} has snapshot {image}: it was removed")
        where = least_loaded({where: load[where] for where in holders}, self._most)
        if where is None and holders:
            where = least_loaded(load, self._most)
            if where is not None:
                await self._hosts[holders[0]].copy_image(image, self._hosts[where])
        return where

    def _nowhere(self, image: str, looks: Mapping[str, Look]) -> InfrastructureFailure:
        away = [where for where in self._hosts if where not in looks]
        if away and (not looks or is_snapshot(image)):
            return HostAway(f"no Docker host for {image}: {', '.join(away)} did not answer for {CREATE_S:g} s")
        return InfrastructureFailure(
            f"{', '.join(looks)} had sandbox.per_host={self._most} sandboxes each for {CREATE_S:g} s: raise it, or add "
            "to sandbox.hosts, or lower actors.episodes"
        )
