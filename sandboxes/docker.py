"""Long-lived Docker sandboxes: one container an episode, found again by its labels.

    create ─▶ start ─▶ shell by exec ── commands ──▶ remove
                         │ shell lost     ▲
                         └─▶ exec another ─▶ else restart ┘

The books that say who owns a container are its name: an adoption renames it, and an owner knows the container by the
name it gave, so that nothing of an earlier owner reaches it (a shell, a restart, a commit, a removal).

Hardening: no network, no capabilities, no new privileges, a non-root user, system paths that can't be written, memory
without swap, limits on CPU, processes and open files, core dumps off. The disk limit bounds the whole container only
where the storage driver can (`disk_quota`); elsewhere it bounds each file. A tmpfs would bound the directory, but a
snapshot leaves a tmpfs out. System calls are filtered by Docker's own profile; that of Docker 20.10 still lets a
container open vsock sockets, which no network namespace holds: have a newer one, or `runtime=runsc`.

A daemon that is killed, and started again, kills the containers as it starts (unless it has `live-restore`); the next
call finds its container stopped and starts it again with its files.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import docker

from klong_rl.types import Limits
from sandboxes import container
from sandboxes.base import Adopted, AgentFailure, InfrastructureFailure, TaskFailure
from sandboxes.channel import ChannelLost
from sandboxes.container import EPISODE_LABEL, EPOCH_LABEL, RUN_LABEL, container_name
from sandboxes.daemon import Daemon, Refused
from sandboxes.shell import ATTEMPTS, ShellSandbox
from sandboxes.stream import AttachedStream

T = TypeVar("T")

AWAY_S = 30.0  # what a daemon takes to be started again, its own 10 s of grace to containers included
CREATE_S = AWAY_S + 60.0
CLOSE_S = AWAY_S + 30.0
RESTART_S = AWAY_S + 60.0
SNAPSHOT_S = AWAY_S + 300.0
PREFLIGHT_S = 10.0

STATE = "/tmp/.klong-state"  # in the container's own layer: a restart and a snapshot keep it
RUNNING = "/dev/shm/.klong-running"  # in memory: a process group's number means nothing after a restart


async def preflight(image: str, base_url: str | None = None) -> None:
    """Raise InfrastructureFailure, in one line with its remedy, unless the daemon answers and has `image`."""
    daemon = Daemon(base_url, threads=1)
    try:
        await daemon.once(f"looking for image {image}", lambda api: api.inspect_image(image), deadline_s=PREFLIGHT_S)
    except docker.errors.NotFound:
        raise InfrastructureFailure(_missing_image(image)) from None
    finally:
        daemon.close()


def _missing_image(image: str) -> str:
    return f"Docker has no image {image!r}: make the default one with `make image`, or pull or build it"


class DockerSandboxes:
    """The sandboxes of one run on one Docker daemon. Built from plain values, in the process that uses it.

    `runtime` names another OCI runtime ("runsc" for gVisor). `network` is Docker's; "none" but for tasks that need
    one. `user` and `workdir` must exist in every image. `create_concurrency` bounds the creations at a time: more
    than a few per core only makes each slower. `disk_quota`: the storage driver enforces sizes (overlay2 on xfs with
    pquota, btrfs, zfs). `base_url` None follows DOCKER_HOST.
    """

    def __init__(
        self,
        run: str,
        *,
        runtime: str | None = None,
        network: str = "none",
        user: str = "agent",
        workdir: str = "/work",
        create_concurrency: int = 4,
        disk_quota: bool = False,
        base_url: str | None = None,
    ) -> None:
        self.run = run
        self.user, self.workdir = user, workdir
        self._host = {"network": network, "runtime": runtime, "disk_quota": disk_quota}
        self._creating = asyncio.Semaphore(create_concurrency)
        # Beyond creations, so that a close never waits behind them.
        self.daemon = Daemon(base_url, threads=create_concurrency + 4)

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> DockerSandbox:
        """A started container with its shell open, within CREATE_S of its turn among the creations.

        Raises InfrastructureFailure when the daemon or the image isn't there, TaskFailure when the image can't work.
        """
        host = container.host_config(limits, **self._host)
        config = container.container_config(self.run, episode, epoch, image, host)
        name = container_name(self.run, episode, epoch)
        async with self._creating:
            for _ in range(ATTEMPTS):
                try:
                    return await self._make(episode, name, config)
                except ChannelLost as lost:
                    last = lost
        if last.silent:  # an overloaded host, as far as anyone can tell
            raise InfrastructureFailure(f"{name} opened no shell in time: {last}") from last
        raise TaskFailure(f"image {image} has no shell for {self.user} that works: {last}") from last

    async def _make(self, episode: str, name: str, config: dict[str, Any]) -> DockerSandbox:
        image = config["Image"]
        try:
            made, sock = await self.daemon.call(
                f"creating {name} from {image}",
                lambda api: container.create(api, name, config, self.user),
                deadline_s=CREATE_S,
            )
        except docker.errors.NotFound:
            raise InfrastructureFailure(_missing_image(image)) from None
        sandbox = DockerSandbox(self, episode, made, name)
        try:
            await sandbox.open(sock)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    async def adopt(self, episode: str) -> DockerSandbox | None:
        """The episode's container of the highest epoch; see `sandboxes.base.SandboxFactory`."""
        found = newest_first(await self._containers(f"{EPISODE_LABEL}={episode}"))
        if not found:
            return None
        name = f"{container_name(self.run, episode, _epoch(found[0]))}-{secrets.token_hex(4)}"
        sandbox = DockerSandbox(self, episode, found[0]["Id"], name)
        try:
            await sandbox.take_over()
        except AgentFailure:
            await sandbox.close()  # nobody can use it, so nobody else would remove it
            raise
        return sandbox

    async def reap(self, keep: set[str], *, snapshots: bool = True) -> list[str]:
        """See `sandboxes.base.SandboxFactory`: containers first, since an image in use can't be removed."""
        found = newest_first(await self._containers())
        newest = {each["Labels"][EPISODE_LABEL]: each["Id"] for each in reversed(found)}  # the last one stays
        kept = {newest[episode] for episode in keep & newest.keys()}
        await asyncio.gather(*(self.remove(each["Id"]) for each in found if each["Id"] not in kept))
        images = await self._snapshots() if snapshots else []
        images = [image for image in images if image["Labels"][EPISODE_LABEL] not in keep]
        await self._remove_images(images)
        return sorted({each["Labels"][EPISODE_LABEL] for each in [*found, *images]} - keep)

    async def forget_snapshots(self, episode: str, keep: str = "") -> int:
        """See `sandboxes.base.SandboxFactory`."""
        images = await self._snapshots(f"{EPISODE_LABEL}={episode}")
        return await self._remove_images([image for image in images if image["Id"] != keep])

    async def close(self) -> None:
        """Let go of the daemon; containers stay, to be adopted."""
        self.daemon.close()

    async def remove(self, name: str) -> None:
        """Kill and remove a container, by its name or id, and its volumes; one that is gone already is fine."""
        await self.daemon.call(f"removing {name}", lambda api: container.remove(api, name), deadline_s=CLOSE_S)

    async def _containers(self, *labels: str) -> list[dict[str, Any]]:
        return await self.daemon.call(
            f"listing the containers of run {self.run}",
            lambda api: api.containers(all=True, filters=self._labelled(*labels)),
            deadline_s=CLOSE_S,
        )

    async def _snapshots(self, *labels: str) -> list[dict[str, Any]]:
        return await self.daemon.call(
            f"listing the snapshots of run {self.run}",
            lambda api: api.images(all=True, filters=self._labelled(*labels)),
            deadline_s=CLOSE_S,
        )

    def _labelled(self, *labels: str) -> dict[str, list[str]]:
        return {"label": [f"{RUN_LABEL}={self.run}", *labels]}

    async def _remove_images(self, images: list[dict[str, Any]]) -> int:
        removed = 0
        for image in container.children_first(images):
            removed += await self.daemon.call(
                f"removing snapshot {image}", lambda api, id=image: container.remove_image(api, id), deadline_s=CLOSE_S
            )
        return removed


def newest_first(containers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Containers, as `api.containers` lists them, by epoch, then by the time they were made."""
    return sorted(containers, key=lambda each: (_epoch(each), each["Created"]), reverse=True)


def _epoch(listed: dict[str, Any]) -> int:
    return int(listed["Labels"][EPOCH_LABEL])


class DockerSandbox(ShellSandbox):
    """One container, which has `name` as long as this is its owner."""

    def __init__(self, factory: DockerSandboxes, episode: str, container_id: str, name: str) -> None:
        super().__init__(episode, work=factory.workdir, state=STATE, running=RUNNING, alone=True)
        self._factory = factory
        self._id = container_id
        self.name = name

    async def open(self, sock: Any) -> None:
        """Take the first shell of a container that was just made."""
        self._channel = await self._open(AttachedStream(sock), blame=TaskFailure)

    async def take_over(self) -> None:
        """Become the owner, and open a shell in the container, starting it again if it stopped."""
        async with self._lock:
            self._acted = True
            await self._call("adopting", lambda api: container.rename(api, self._id, self.name), RESTART_S)
            await self._reopen(silent=False)

    async def _join(self) -> AttachedStream:
        user = self._factory.user
        return AttachedStream(
            await self._call("opening a shell in", lambda api: container.open_shell(api, self.name, user), RESTART_S)
        )

    async def _restart(self) -> tuple[AttachedStream, bool]:
        user = self._factory.user
        sock, had_stopped = await self._call(
            "restarting", lambda api: container.restart(api, self.name, user), RESTART_S
        )
        return AttachedStream(sock), had_stopped

    async def _check_owner(self) -> None:
        await self._call("looking at", lambda api: api.inspect_container(self.name), RESTART_S)

    async def snapshot(self, tag: str) -> str:
        """Commit the container, paused meanwhile (1 s per 100 MB written); the image's id.

        The tag that `docker images` shows begins with the container's id: episodes don't take it from each other.
        """
        full = f"{self._id[:12]}-{tag}"
        async with self._lock:
            return await self._call("committing", lambda api: container.commit(api, self.name, full), SNAPSHOT_S)

    async def _remove(self) -> None:
        await self._factory.remove(self.name)

    async def _call(self, doing: str, use: Callable[[docker.APIClient], T], deadline_s: float) -> T:
        """A call on the container, by its name. Raises Adopted, or InfrastructureFailure, when it hasn't that name."""
        call = self._factory.daemon.call
        try:
            return await call(f"{doing} {self.name}", use, deadline_s=deadline_s)
        except docker.errors.NotFound as error:
            missing = error
        try:
            found = await call("looking it up", lambda api: api.inspect_container(self._id), deadline_s=deadline_s)
        except docker.errors.NotFound:
            raise InfrastructureFailure(f"container {self.name} of {self.episode} is gone: {missing}") from missing
        if found["Name"] == f"/{self.name}":
            raise Refused(f"Docker refused {doing} {self.name}: {missing}") from missing
        raise Adopted(f"{self.name} of {self.episode} was adopted by another owner, as {found['Name']}") from missing
