"""Long-lived Docker sandboxes: one container an episode, found again by its labels.

The container's main process is the supervising shell itself, attached before it starts: a container is ready after
create, attach and start, with no exec (45 ms less each). Later shells (an adoption, a shell that was killed) come
by exec. If the agent takes the main process down, the container stops and is started again with its files.

    create ─▶ attach ─▶ start ─▶ shell on the attached socket ── commands ──▶ remove
                                    │ shell lost                     ▲
                                    └─▶ exec another ─▶ else restart ┘

Hardening: no network, no capabilities, no new privileges, a non-root user, memory without swap, CPU and process
limits, core dumps off. The disk limit bounds the whole container only where the storage driver can (`disk_quota`);
elsewhere it bounds each file. A tmpfs would bound the directory, but a snapshot leaves a tmpfs out.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any

import docker

from klong_rl.types import Limits
from sandboxes.base import AgentFailure, InfrastructureFailure, TaskFailure
from sandboxes.channel import ChannelLost
from sandboxes.daemon import Daemon
from sandboxes.shell import ShellSandbox
from sandboxes.stream import AttachedStream

CREATE_S = 60.0
CLOSE_S = 30.0
RESTART_S = 60.0
SNAPSHOT_S = 300.0
PREFLIGHT_S = 10.0

STATE = "/tmp/.klong-state"  # in the container's own layer: a restart and a snapshot keep it
RUNNING = "/dev/shm/.klong-running"  # in memory: a process group's number means nothing after a restart

RUN_LABEL, EPISODE_LABEL, EPOCH_LABEL = "klong.run", "klong.episode", "klong.epoch"


async def preflight(image: str, base_url: str | None = None) -> None:
    """Raise InfrastructureFailure, in one line with its remedy, unless the daemon answers and has `image`."""
    daemon = Daemon(base_url, threads=1)
    try:
        await daemon.call(f"looking for image {image}", lambda api: api.inspect_image(image), deadline_s=PREFLIGHT_S)
    except docker.errors.NotFound:
        raise InfrastructureFailure(_missing_image(image)) from None
    finally:
        daemon.close()


def _missing_image(image: str) -> str:
    return f"Docker has no image {image!r}: make the default one with `make image`, or pull or build it"


def container_name(run: str, episode: str, epoch: int) -> str:
    """Unique per run, episode and epoch, whatever characters they hold; readable where Docker allows.

    >>> container_name("demo", "t3-s1-g4-0", 2)
    'klong-demo-t3-s1-g4-0-2-99a2500b'
    """
    text = f"{run}-{episode}-{epoch}"
    digest = hashlib.sha256(repr((run, episode, epoch)).encode()).hexdigest()[:8]
    return f"klong-{re.sub(r'[^A-Za-z0-9_.-]', '_', text)[:80]}-{digest}"


def host_config(limits: Limits, *, network: str, runtime: str | None, disk_quota: bool) -> dict[str, Any]:
    """Docker's HostConfig: what the module's docstring calls hardening."""
    disk_bytes = limits.disk_mb << 20
    return {
        "NetworkMode": network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Init": True,  # reaps what commands leave behind
        "Memory": limits.memory_mb << 20,
        "MemorySwap": limits.memory_mb << 20,  # memory and swap together: so, no swap
        "NanoCpus": int(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": disk_bytes, "Hard": disk_bytes},
        ],
        "LogConfig": {"Type": "none"},  # the attached socket is the only reader, and json-file costs 40 ms a start
        **({"StorageOpt": {"size": f"{limits.disk_mb}m"}} if disk_quota else {}),
        **({"Runtime": runtime} if runtime else {}),
    }


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
        name = container_name(self.run, episode, epoch)
        config = {
            "Image": image,
            "Cmd": ["sh", "-s"],
            "Entrypoint": [],
            "User": self.user,
            "WorkingDir": self.workdir,
            "OpenStdin": True,
            "Labels": {RUN_LABEL: self.run, EPISODE_LABEL: episode, EPOCH_LABEL: str(epoch)},
            "HostConfig": host_config(limits, **self._host),
        }
        async with self._creating:
            try:
                sock = await self.daemon.call(
                    f"creating {name} from {image}", lambda api: _create(api, name, config), deadline_s=CREATE_S
                )
            except docker.errors.NotFound:
                raise InfrastructureFailure(_missing_image(image)) from None
            sandbox = DockerSandbox(self, episode, name)
            try:
                await sandbox.open(sock)
            except BaseException:
                await sandbox.close()
                raise
            return sandbox

    async def adopt(self, episode: str) -> DockerSandbox | None:
        """The episode's container of the highest epoch, started again if it stopped; None if it has none."""
        found = await self._containers(f"{EPISODE_LABEL}={episode}")
        if not found:
            return None
        newest = max(found, key=lambda container: int(container["Labels"][EPOCH_LABEL]))
        sandbox = DockerSandbox(self, episode, newest["Names"][0].removeprefix("/"))
        try:
            await sandbox.reconnect()
        except AgentFailure:
            await sandbox.close()  # nobody can use it, so nobody else would remove it
            raise
        return sandbox

    async def reap(self, keep: set[str]) -> list[str]:
        """Remove this run's containers whose episode isn't in `keep`; the episodes, sorted."""
        stale = [found for found in await self._containers() if found["Labels"][EPISODE_LABEL] not in keep]
        await asyncio.gather(*(self.remove(container["Id"]) for container in stale))
        return sorted({container["Labels"][EPISODE_LABEL] for container in stale})

    async def close(self) -> None:
        """Let go of the daemon; containers stay, to be adopted."""
        self.daemon.close()

    async def remove(self, container: str) -> None:
        """Kill and remove a container and its volumes; one that is gone already is fine."""
        try:
            await self.daemon.call(
                f"removing {container}",
                lambda api: api.remove_container(container, force=True, v=True),
                deadline_s=CLOSE_S,
            )
        except docker.errors.NotFound:
            return

    async def _containers(self, *labels: str) -> list[dict[str, Any]]:
        wanted = {"label": [f"{RUN_LABEL}={self.run}", *labels]}
        return await self.daemon.call(
            f"listing the containers of run {self.run}",
            lambda api: api.containers(all=True, filters=wanted),
            deadline_s=CLOSE_S,
        )


class DockerSandbox(ShellSandbox):
    """One container, addressed by its name."""

    def __init__(self, factory: DockerSandboxes, episode: str, name: str) -> None:
        super().__init__(episode, work=factory.workdir, state=STATE, running=RUNNING)
        self._factory = factory
        self._daemon = factory.daemon
        self.name = name

    async def open(self, sock: Any) -> None:
        """Take the attached socket of a container that was just started."""
        try:
            await self._open(AttachedStream(sock), blame=TaskFailure)
        except ChannelLost as lost:
            if lost.silent:  # an overloaded host, as far as anyone can tell
                raise InfrastructureFailure(f"{self.name} opened no shell in time: {lost}") from lost
            raise TaskFailure(f"the image of {self.name} has no shell for {self._factory.user}: {lost}") from lost

    async def reconnect(self) -> None:
        """Open a shell in the container, starting it again if it stopped."""
        async with self._lock:
            await self._reopen(silent=False)

    async def _join(self) -> AttachedStream:
        return await self._attached("opening a shell in", _exec_shell, self._factory.user)

    async def _restart(self) -> AttachedStream:
        return await self._attached("restarting", _restart)

    async def _attached(self, doing: str, use: Any, *args: str) -> AttachedStream:
        try:
            sock = await self._daemon.call(
                f"{doing} {self.name}", lambda api: use(api, self.name, *args), deadline_s=RESTART_S
            )
        except docker.errors.NotFound as error:
            raise InfrastructureFailure(f"container {self.name} of {self.episode} is gone: {error}") from error
        return AttachedStream(sock)

    async def snapshot(self, tag: str) -> str:
        """Commit the container (paused meanwhile; 1 s per 100 MB written) as `klong-snapshot:TAG`; the image's id."""
        async with self._lock:
            image = await self._daemon.call(
                f"committing {self.name}",
                lambda api: api.commit(self.name, repository="klong-snapshot", tag=tag),
                deadline_s=SNAPSHOT_S,
            )
        return image["Id"]

    async def _remove(self) -> None:
        await self._factory.remove(self.name)


def _create(api: docker.APIClient, name: str, config: dict[str, Any]) -> Any:
    """Create, attach and start in one go; the attached socket. Nothing is left behind where that fails."""
    try:
        api.create_container_from_config(config, name)
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        api.remove_container(name, force=True, v=True)  # of this very epoch: a creation that was given up on
        api.create_container_from_config(config, name)
    try:
        return _attach_and_start(api, name)
    except Exception:
        api.remove_container(name, force=True, v=True)
        raise


def _attach_and_start(api: docker.APIClient, name: str) -> Any:
    sock = api.attach_socket(name, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    api.start(name)
    return sock


def _exec_shell(api: docker.APIClient, name: str, user: str) -> Any:
    made = api.exec_create(name, ["sh", "-s"], stdin=True, user=user)
    return api.exec_start(made["Id"], socket=True)


def _restart(api: docker.APIClient, name: str) -> Any:
    if api.inspect_container(name)["State"]["Running"]:
        api.kill(name)
        api.wait(name, timeout=RESTART_S)
    return _attach_and_start(api, name)
