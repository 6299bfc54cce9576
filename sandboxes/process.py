"""Sandboxes without Docker: a directory and a shell on the bare host, for tests and for machines with no daemon.

**This is no security boundary.** Commands run as you, see your files and your network, and no limit of `Limits` is
enforced. The life cycle is Docker's: one directory an episode that another process can adopt, timeouts that kill the
process group, snapshots (copies of the directory).

    root/RUN/EPISODE/work/      the working directory
    root/RUN/EPISODE/state      the shell's state, see sandboxes.shell
    root/RUN/.snapshots/TAG/    what `snapshot` kept; its path is an image for `create`
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, unquote

from klong_rl.types import Limits
from sandboxes.base import InfrastructureFailure, TaskFailure
from sandboxes.channel import DATA, TERMINAL
from sandboxes.shell import ShellSandbox

RECV_BYTES = 1 << 16
KILL_S = 10.0
MARK = "KLONG_SANDBOX"  # in the environment of every process of a sandbox: how they are found, whoever started them


class ProcessSandboxes:
    """The sandboxes of one run under `root` (default: a folder of the system's temporary directory)."""

    def __init__(self, run: str, *, root: str | None = None) -> None:
        base = Path(root) if root else Path(tempfile.gettempdir()) / f"klong-sandboxes-{os.getuid()}"
        self.folder = base.absolute() / quote(run, safe="")

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> ProcessSandbox:
        """A fresh directory, copied from `image` where that is a snapshot's path; an older epoch's is removed."""
        await ProcessSandbox(self, episode).close()
        sandbox = ProcessSandbox(self, episode)
        if os.path.isabs(image):
            if not os.path.isdir(image):
                raise InfrastructureFailure(f"no snapshot at {image}")
            await asyncio.to_thread(shutil.copytree, image, sandbox.folder, symlinks=True)
        else:
            (sandbox.folder / "work").mkdir(parents=True)
        await sandbox.open()
        return sandbox

    async def adopt(self, episode: str) -> ProcessSandbox | None:
        sandbox = ProcessSandbox(self, episode)
        if not sandbox.folder.is_dir():
            return None
        await sandbox.reconnect()
        return sandbox

    async def reap(self, keep: set[str]) -> list[str]:
        found = [path for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
        stale = sorted(episode for path in found if (episode := unquote(path.name)) not in keep)
        for episode in stale:
            await ProcessSandbox(self, episode).close()
        return stale

    async def close(self) -> None:
        """Nothing is held; sandboxes stay, to be adopted."""


class ProcessSandbox(ShellSandbox):
    """One directory and the processes that carry its mark."""

    def __init__(self, factory: ProcessSandboxes, episode: str) -> None:
        self.folder = factory.folder / quote(episode, safe="").replace(".", "%2E")
        self._snapshots = factory.folder / ".snapshots"
        super().__init__(
            episode,
            work=str(self.folder / "work"),
            state=str(self.folder / "state"),
            running=str(self.folder / "running"),
        )

    async def open(self) -> None:
        await self._open(await self._join(), blame=TaskFailure)

    async def reconnect(self) -> None:
        async with self._lock:
            await self._reopen(silent=False)

    async def _join(self) -> PipeStream:
        if not self.folder.is_dir():
            raise InfrastructureFailure(f"the sandbox of {self.episode} is gone: no directory {self.folder}")
        mine = {MARK: str(self.folder), "HOME": self._work}
        return await PipeStream.start(cwd=self._work, env={**_environment(), **mine})

    async def _restart(self) -> PipeStream:
        self._kill()
        return await self._join()

    async def snapshot(self, tag: str) -> str:
        """Copy the directory; unlike Docker's, a sandbox made from it starts in the working directory, env empty."""
        target = self._snapshots / quote(tag, safe="")
        async with self._lock:
            await asyncio.to_thread(shutil.copytree, self.folder, target, symlinks=True)
        for name in ("state", "running"):  # they name this directory and its processes
            (target / name).unlink(missing_ok=True)
        return str(target)

    async def _remove(self) -> None:
        self._kill()
        if self.folder.exists():
            await asyncio.to_thread(shutil.rmtree, self.folder)

    def _kill(self) -> None:
        """SIGKILL to every process with this sandbox's mark, until there is none; they may fork meanwhile."""
        (self.folder / "running").unlink(missing_ok=True)
        wanted = f"{MARK}={self.folder}".encode()
        give_up = time.monotonic() + KILL_S
        while pids := [pid for pid in _processes() if wanted in _environ(pid)]:
            if time.monotonic() > give_up:
                raise InfrastructureFailure(f"processes {pids} of {self.episode} don't die within {KILL_S:g} s")
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended by itself


def _environment() -> dict[str, str]:
    """What a command needs to find programs, and nothing of this process's own (keys, Ray's and vLLM's settings)."""
    return {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environ(pid: int) -> list[bytes]:
    """A process's environment as it started; empty for a zombie, for one that is gone and for other users' ones."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return []


class PipeStream:
    """A child shell's pipes as a `sandboxes.channel.Stream`: stdout is the terminal, stderr the data lane."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._next = {
            lane: asyncio.ensure_future(reader.read(RECV_BYTES))
            for lane, reader in ((TERMINAL, process.stdout), (DATA, process.stderr))
        }

    @classmethod
    async def start(cls, *, cwd: str, env: dict[str, str]) -> PipeStream:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                "sh", "-s", cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise InfrastructureFailure(f"no shell starts in {cwd}: {error}") from error
        return cls(process)

    async def send(self, data: bytes) -> None:
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def recv(self) -> tuple[int, bytes] | None:
        await asyncio.wait(self._next.values(), return_when=asyncio.FIRST_COMPLETED)
        for lane, pending in self._next.items():
            if pending.done():
                data = b"" if pending.cancelled() else pending.result()
                if not data:
                    return None
                reader = self._process.stdout if lane == TERMINAL else self._process.stderr
                self._next[lane] = asyncio.ensure_future(reader.read(RECV_BYTES))
                return lane, data
        raise AssertionError("asyncio.wait returned with nothing done")

    def close(self) -> None:
        for pending in self._next.values():
            pending.cancel()
        self._process.stdin.close()
        if self._process.returncode is None:
            self._process.kill()
