"""One container as a sandbox.

The books that say who owns a container are its name: an adoption renames it, and an owner knows the container by the
name it gave, so that nothing of an earlier owner reaches it (a shell, a restart, a commit, a removal).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeVar

import docker

from klong_rl.beside import beside
from sandboxes import container
from sandboxes.base import Adopted, ExecResult, InfrastructureFailure, TaskFailure
from sandboxes.container import EPISODE_LABEL, EPOCH_LABEL, RUN_LABEL, parse_name
from sandboxes.daemon import Daemon, Refused
from sandboxes.disk import DiskFull, DiskWatch
from sandboxes.egress.containers import Egress, proxy_name, remove_proxies, start_proxy
from sandboxes.executor import executor_environment
from sandboxes.session import Session
from sandboxes.shell import ShellSandbox
from sandboxes.shortcut import Shortcut
from sandboxes.stream import Attached, AttachedStream
from sandboxes.supervisor import Paths

T = TypeVar("T")

AWAY_S = 30.0  # what a daemon takes to be started again, its own 10 s of grace to containers included
CLOSE_S = AWAY_S + 30.0
RESTART_S = AWAY_S + 60.0
SNAPSHOT_S = AWAY_S + 300.0
MEASURE_S = AWAY_S + 60.0

STATE = "/tmp/.klong-state"  # in the container's own layer: a restart and a snapshot keep it
RUNNING = "/dev/shm/.klong-running"  # in memory: a process group's number means nothing after a restart
SUPERVISOR_MARK = "klong-supervisor"


class Place(NamedTuple):
    """Where a container is, and as whom its commands run."""

    daemon: Daemon
    run: str
    session: Session
    egress: Egress

    @property
    def paths(self) -> Paths:
        return Paths(self.session.workdir, STATE, RUNNING)

    @property
    def shell(self) -> container.Shell:
        return container.Shell(self.session.user, executor_environment(self.paths, SUPERVISOR_MARK))


class ShellStream(AttachedStream):
    """The stream of a shell, and what finds the shortcut to it."""

    def __init__(self, shell: Attached) -> None:
        super().__init__(shell.socket)
        self.shell = shell


class DockerSandbox(ShellSandbox):
    """One container, which has `name` as long as this is its owner. `proxy` is the id of its way out, if it has one."""

    def __init__(self, place: Place, container_id: str, name: str, proxy: str = "") -> None:
        super().__init__(parse_name(name).episode, place.paths, alone=True)
        self._place = place
        self._id = container_id
        self._proxy = proxy
        self._disk = self._watch_disk()
        self.name = name

    async def open(self, shell: Attached) -> None:
        """Take the first shell of a container that was just made."""
        self._channel = await self._open(ShellStream(shell), blame=TaskFailure)

    @property
    def where(self) -> str:
        """The address of its host."""
        return self._place.daemon.where

    async def hand_out(self, name: str) -> None:
        """From here on it is the episode's that `name` says. Raises InfrastructureFailure where it is gone."""
        self.episode, self.name = parse_name(name).episode, name
        self._disk = self._watch_disk()
        await self._call("handing out", self._hand_out, RESTART_S)

    def _hand_out(self, api: docker.APIClient) -> None:
        container.hand_out(api, self._id, self.name)
        if self._proxy:
            container.hand_out(api, self._proxy, proxy_name(self.name))

    def _watch_disk(self) -> DiskWatch:
        return DiskWatch(self._id, lambda use: self._call("measuring", use, MEASURE_S))

    async def exec(self, command: str, **options: Any) -> ExecResult:
        """See `sandboxes.base.Sandbox`. Raises AgentFailure where the sandbox holds more files than it may."""
        try:
            await self._disk.due()
            return await super().exec(command, **options)
        except DiskFull:
            async with self._lock:
                await self._reopen(silent=False)  # ends the command
            raise

    def _meanwhile(self) -> AbstractAsyncContextManager[None]:
        return beside(self._disk.watch(), after_s=self._disk.due_in_s())

    async def take_over(self) -> None:
        """Become the owner, and open a shell in the container, starting it again if it stopped."""
        async with self._lock:
            self._acted = True
            await self._call("adopting", lambda api: container.rename(api, self._id, self.name), RESTART_S)
            await self._reopen(silent=False)

    async def _join(self) -> ShellStream:
        shell = self._place.shell
        return ShellStream(
            await self._call("opening a shell in", lambda api: container.open_shell(api, self.name, shell), RESTART_S)
        )

    async def _restart(self) -> tuple[ShellStream, bool]:
        shell, had_stopped = await self._call("restarting", self._restart_both, RESTART_S)
        return ShellStream(shell), had_stopped

    async def _opened(self, stream: ShellStream) -> None:
        """Find the shortcut to the shell, on this machine's own daemon."""
        if self._place.daemon.is_local:
            shell = stream.shell
            found = await self._call("looking at a shell of", lambda api: api.exec_inspect(shell.exec), RESTART_S)
            stream.shortcut = Shortcut.find(found["Pid"], shell.token)

    def _restart_both(self, api: docker.APIClient) -> tuple[Attached, bool]:
        if self._proxy:
            start_proxy(api, self._proxy)
        return container.restart(api, self.name, self._place.shell)

    async def _check_owner(self) -> None:
        await self._call("looking at", lambda api: api.inspect_container(self.name), RESTART_S)

    async def snapshot(self, tag: str) -> str:
        """Commit the container, paused meanwhile (1 s per 100 MB written); the image's id.

        The tag that `docker images` shows begins with the container's id: episodes don't take it from each other.
        """
        full = f"{self._id[:12]}-{tag}"
        epoch = str(parse_name(self.name).epoch)
        labels = {RUN_LABEL: self._place.run, EPISODE_LABEL: self.episode, EPOCH_LABEL: epoch}
        async with self._lock:
            return await self._call(
                "committing", lambda api: container.commit(api, self.name, full, labels), SNAPSHOT_S
            )

    async def _remove(self) -> None:
        """By its name: if another has adopted it, it is theirs, and so is its proxy."""

        def remove(api: docker.APIClient) -> None:
            container.remove(api, self.name)
            if self._proxy:
                remove_proxies(api, self._place.egress, [self._proxy])

        await self._place.daemon.call(f"removing {self.name}", remove, deadline_s=CLOSE_S)

    async def _call(self, doing: str, use: Callable[[docker.APIClient], T], deadline_s: float) -> T:
        """A call on the container, by its name. Raises Adopted, or InfrastructureFailure, when it hasn't that name."""
        call = self._place.daemon.call
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
