"""The disk limit of a container whose storage driver sets none: looked after, since it can't be enforced.

overlay2 on xfs with `pquota`, btrfs and zfs bound what a container writes, and the agent sees a full disk. On any other
host each file is bounded (RLIMIT_FSIZE), but not how many there are. There the daemon is asked how much the container
has written: before a command, if the last look is `LOOK_EVERY_S` ago, and then each `LOOK_EVERY_S` while the command
runs. A container over its limit is the agent's failure. In between it may write as much as the host's disk takes in
that time, and what a background process writes between two commands shows at the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import docker

from sandboxes.base import AgentFailure

LOOK_EVERY_S = 10.0
LOOK_SHARE = 0.05  # of the time may go into looking: the daemon walks all files that the container wrote

Use = Callable[[docker.APIClient], Any]


class DiskFull(AgentFailure):
    """The sandbox holds more than its limit."""


def unenforced_limit(found: dict[str, Any]) -> int | None:
    """The bytes that a container is held to, as `api.inspect_container` has it; None where the driver does that."""
    host = found["HostConfig"]
    if host.get("StorageOpt"):
        return None
    return next(each["Hard"] for each in host["Ulimits"] if each["Name"] == "fsize")


class DiskWatch:
    """One container's. `ask(use)` runs `use(api)` and may raise InfrastructureFailure."""

    def __init__(self, container_id: str, ask: Callable[[Use], Awaitable[Any]]) -> None:
        self._id, self._ask = container_id, ask
        self._limit: int | None = None
        self._next = time.monotonic() + LOOK_EVERY_S

    def due_in_s(self) -> float:
        """Seconds to the next look, infinite where there is nothing to look after."""
        return self._next - time.monotonic()

    async def due(self) -> None:
        """Look, if it is time. Raises DiskFull."""
        if self.due_in_s() <= 0:
            await self._look()

    async def watch(self) -> None:
        """Look again and again, until there is nothing to look after. Raises DiskFull."""
        while self._next < float("inf"):
            await asyncio.sleep(max(0.0, self.due_in_s()))
            await self._look()

    async def _look(self) -> None:
        if self._limit is None:
            self._limit = unenforced_limit(await self._ask(lambda api: api.inspect_container(self._id)))
            if self._limit is None:
                self._next = float("inf")
                return
        began = time.monotonic()
        written = await self._ask(self._written)
        now = time.monotonic()
        self._next = now + max(LOOK_EVERY_S, (now - began) / LOOK_SHARE)
        if written > self._limit:
            raise DiskFull(
                f"container {self._id[:12]} holds {written >> 20} MB of files; its limit, `Limits.disk_mb`, is "
                f"{self._limit >> 20}"
            )

    def _written(self, api: docker.APIClient) -> int:
        """Bytes in the container's own layer. Raises docker.errors.NotFound, as inspecting it would."""
        listed = api.containers(all=True, size=True, filters={"id": self._id})
        if not listed:
            raise docker.errors.NotFound(f"no container {self._id[:12]}")
        return listed[0].get("SizeRw") or 0
