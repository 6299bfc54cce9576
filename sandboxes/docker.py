"""Long-lived Docker sandboxes: one container an episode, found again by its name.

    create ─▶ start ─▶ shell by exec ── commands ──▶ remove
       │                 │ shell lost     ▲
       │                 └─▶ exec another ─▶ else restart ┘
       └ ahead of time, in a pool: handed out by a rename (sandboxes.pool)

Hardening: no network but the proxy that a task may ask for (sandboxes.egress), no capabilities, no new privileges, a
non-root user, system paths that can't be written, memory without swap, limits on CPU, processes and open files, core
dumps off. The disk limit is the storage driver's where it has one, and else looked after (sandboxes.disk): a tmpfs
would bound the directory, but a snapshot leaves a tmpfs out. System calls are filtered by Docker's own profile; that of
Docker 20.10 still lets a container open vsock sockets, which no network namespace holds: have a newer one, or
`runtime=runsc`.

A daemon that is killed, and started again, kills the containers as it starts (unless it has `live-restore`); the next
call finds its container stopped and starts it again with its files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import docker

from klong_rl.types import Limits
from sandboxes.base import HostAway, InfrastructureFailure
from sandboxes.container import EPISODE_LABEL
from sandboxes.daemon import Daemon
from sandboxes.docker_sandbox import DockerSandbox
from sandboxes.egress.containers import Egress
from sandboxes.host import DockerHost, Found
from sandboxes.image import folder_of, is_built, missing_image
from sandboxes.placement import Placement
from sandboxes.shell import census

log = logging.getLogger(__name__)

T = TypeVar("T")

PREFLIGHT_S = 10.0


async def preflight(image: str, hosts: Sequence[str] = (), runtime: str = "") -> None:
    """Raise InfrastructureFailure, in one line with its remedy, unless every host answers with `image` and `runtime`.

    Of an image to be built its folder is looked at: TaskFailure where that has no Dockerfile.
    """
    await asyncio.gather(*(_preflight(image, url, runtime) for url in hosts or (None,)))


async def _preflight(image: str, url: str | None, runtime: str) -> None:
    daemon = Daemon(url, threads=1)

    def look(api: docker.APIClient) -> None:
        known = api.info()["Runtimes"]
        if runtime and runtime not in known:
            raise InfrastructureFailure(
                f"Docker at {daemon.where} has no runtime {runtime!r}, but {', '.join(sorted(known))}: install it and "
                "name it in /etc/docker/daemon.json, or set sandbox.runtime="
            )
        if not is_built(image):
            api.inspect_image(image)

    try:
        if is_built(image):
            folder_of(image)
        await daemon.once(f"looking for image {image}", look, deadline_s=PREFLIGHT_S)
    except docker.errors.NotFound:
        raise InfrastructureFailure(missing_image(image, daemon.where)) from None
    finally:
        daemon.close()


class DockerSandboxes:
    """The sandboxes of one run, on one Docker host or several. Built from plain values, in the process that uses it.

    `hosts` are addresses, unix://, tcp:// or ssh://; none follows DOCKER_HOST. `per_host` bounds the sandboxes on each;
    0 sets no bound. `runtime` names another OCI runtime ("runsc" for gVisor). `network` is Docker's; "none" but for
    tasks that need one. `create_concurrency` bounds the creations at a
    time on a host: more than a few per core only makes each slower. `warm` sandboxes are made ahead on each host, of
    the kinds asked for last. `egress` is what `sandboxes.egress.containers.Egress` takes, for tasks with a network of
    their own. `snapshot_bytes` bounds the run's snapshots on each host; 0 sets no bound.
    """

    def __init__(
        self,
        run: str,
        *,
        hosts: Sequence[str] = (),
        per_host: int = 0,
        runtime: str | None = None,
        network: str = "none",
        create_concurrency: int = 4,
        warm: int = 0,
        egress: Mapping[str, Any] | None = None,
        snapshot_bytes: int = 0,
    ) -> None:
        self.run = run
        ways = {name: value if isinstance(value, str) else tuple(value) for name, value in (egress or {}).items()}
        self.hosts = [
            DockerHost(
                Daemon(url, threads=create_concurrency + 4),  # beyond creations, so that a close never waits for them
                run,
                hardening={"network": network, "runtime": runtime},
                egress=Egress(run, **ways),
                create_concurrency=create_concurrency,
                warm=warm,
            )
            for url in hosts or (None,)
        ]
        self._placement = Placement(self.hosts, per_host)
        self._snapshot_bytes = snapshot_bytes

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> DockerSandbox:
        """A started container with its shell open; one that was made ahead, if there is one where it is placed.

        Raises InfrastructureFailure when no daemon has room or the image isn't there, TaskFailure when the image can't
        work.
        """
        async with self._placement.choose(image) as host:
            return await host.create(episode, epoch, image, limits)

    async def prepare(self, image: str) -> None:
        """See `sandboxes.base.SandboxFactory`: on every host, since any may be chosen. One that is away is left out."""
        await self._of_each_host(lambda host: host.prepare(image))

    async def adopt(self, episode: str) -> DockerSandbox | None:
        """The episode's container of the highest epoch; see `sandboxes.base.SandboxFactory`.

        It is on one host alone, since another is made only when all have said that they have none. So the first that
        has it will do, and HostAway is raised when none has it and one doesn't answer.
        """
        asks = [asyncio.ensure_future(host.containers(episode)) for host in self.hosts]
        missing = None
        try:
            for ask in asyncio.as_completed(asks):
                try:
                    found = newest_first(await ask)
                except HostAway as away:
                    missing = away
                    continue
                if found:
                    return await found[0].host.adopt(found[0])
        finally:
            for ask in asks:
                ask.cancel()
        if missing is not None:
            raise missing
        return None

    async def reap(self, keep: set[str], *, snapshots: bool = True) -> list[str]:
        """See `sandboxes.base.SandboxFactory`: containers first, since an image in use can't be removed.

        Those that were made ahead and handed to no episode go too. A host that is away is left as it is.
        """
        answers = await self._of_each_host(lambda host: host.containers())
        found = newest_first([each for answer in answers.values() for each in answer])
        newest = {each.name.episode: each.id for each in reversed(found)}  # the last one stays
        kept = {newest[episode] for episode in keep & newest.keys()}
        await asyncio.gather(*(each.host.remove(each.id) for each in found if each.id not in kept))
        episodes = {each.name.episode for each in found}
        for host in answers:
            await host.remove_egress()
        for host in answers if snapshots else ():
            images = [image for image in await host.snapshots() if image["Labels"][EPISODE_LABEL] not in keep]
            await host.remove_snapshots(images)
            episodes |= {image["Labels"][EPISODE_LABEL] for image in images}
        return sorted(episodes - keep - {""})

    async def make_room(self, sandbox: DockerSandbox, needed: Callable[[], Awaitable[set[str]]]) -> None:
        """See `sandboxes.base.SandboxFactory`."""
        if self._snapshot_bytes:
            [host] = [host for host in self.hosts if host.where == sandbox.where]
            await host.make_room(needed, self._snapshot_bytes)

    async def forget_snapshots(self, episode: str, keep: str = "") -> int:
        """See `sandboxes.base.SandboxFactory`. What a host that is away has of them stays until the run is over."""

        async def forget(host: DockerHost) -> int:
            images = await host.snapshots(episode)
            return await host.remove_snapshots([image for image in images if image["Id"] != keep])

        return sum((await self._of_each_host(forget)).values())

    def census(self) -> dict[str, dict[str, int]]:
        """See `sandboxes.base.SandboxFactory`."""
        return {host.where: census(host.opened) for host in self.hosts}

    async def close(self) -> None:
        """Let go of the daemons. Containers of episodes stay, to be adopted; those made ahead are removed."""
        await asyncio.gather(*(host.close() for host in self.hosts))

    async def _of_each_host(self, ask: Callable[[DockerHost], Awaitable[T]]) -> dict[DockerHost, T]:
        """The answers of the hosts that answer. Raises HostAway where the only one doesn't."""
        answers = await asyncio.gather(*(ask(host) for host in self.hosts), return_exceptions=True)
        given = {}
        for host, answer in zip(self.hosts, answers, strict=True):
            if isinstance(answer, HostAway) and len(self.hosts) > 1:
                log.warning("what is on %s stays: %s", host.where, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                given[host] = answer
        return given


def newest_first(containers: list[Found]) -> list[Found]:
    """By epoch, then by the time they were made."""
    return sorted(containers, key=lambda each: (each.name.epoch, each.created), reverse=True)
