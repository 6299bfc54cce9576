"""Sandboxes without Docker: a directory and a shell on the bare host, for tests and for machines with no daemon.

**This is no security boundary.** Commands run as you, see your files and your network, and no limit of `Limits` is
enforced: so it is refused unless `allow_unisolated`. The life cycle is Docker's: one directory an episode that another
process can adopt, timeouts that kill the process group (what left the group goes with the sandbox), snapshots (copies
of the directory).

    root/RUN/EPISODE/work/              the working directory
    root/RUN/EPISODE/state              the shell's state, see sandboxes.shell
    root/RUN/EPISODE/owner              the name of the owner, drawn by who makes or adopts the sandbox
    root/RUN/.snapshots/EPISODE/TAG/    what `snapshot` kept; its path is an image for `create`
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote, unquote
from weakref import WeakSet

from klong_rl.errors import UserError
from klong_rl.types import Limits
from sandboxes.base import Adopted, InfrastructureFailure, TaskFailure
from sandboxes.channel import DATA, TERMINAL, Stream
from sandboxes.executor import COMMAND, executor_environment
from sandboxes.shell import ShellSandbox, census
from sandboxes.supervisor import Paths

RECV_BYTES = 1 << 16
KILL_S = 10.0
SNAPSHOTS = ".snapshots"
HERE = b"@klong-sandbox@/"  # stands for a sandbox's directory in the state that a snapshot keeps
MARK = "KLONG_SANDBOX"  # in the environment of every process of a sandbox: how they are found, whoever started them


class ProcessSandboxes:
    """The sandboxes of one run under `root` (default: a folder of the system's temporary directory).

    Raises UserError unless `allow_unisolated`.
    """

    def __init__(self, run: str, *, root: str | None = None, allow_unisolated: bool = False) -> None:
        if not allow_unisolated:
            raise UserError(
                "bare processes are no sandbox: a model's commands run as you, with your files and your network, and "
                "nothing limits them. Use sandbox.kind=docker; or, on a machine with nothing to lose, set "
                "sandbox.allow_unisolated=true"
            )
        base = Path(root) if root else Path(tempfile.gettempdir()) / f"klong-sandboxes-{os.getuid()}"
        self.folder = base.absolute() / quote(run, safe="")
        self._opened: WeakSet[ProcessSandbox] = WeakSet()

    async def prepare(self, image: str) -> None:
        """Nothing: the host is the image."""

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> ProcessSandbox:
        """A fresh directory, copied from `image` where that is a snapshot's path; an older epoch's is removed."""
        sandbox = ProcessSandbox(self, episode)
        await sandbox.erase()
        if os.path.isabs(image):
            await asyncio.to_thread(sandbox.restore, Path(image))
        else:
            (sandbox.folder / "work").mkdir(parents=True)
        await sandbox.open()
        self._opened.add(sandbox)
        return sandbox

    async def adopt(self, episode: str) -> ProcessSandbox | None:
        sandbox = ProcessSandbox(self, episode)
        if not sandbox.folder.is_dir():
            return None
        await sandbox.take_over()
        self._opened.add(sandbox)
        return sandbox

    async def reap(self, keep: set[str], *, snapshots: bool = True) -> list[str]:
        kept = self.folder.glob(f"{SNAPSHOTS}/*/*") if snapshots else ()
        found = {*self.folder.glob("[!.]*"), *(path.parent for path in kept)}
        stale = {unquote(path.name) for path in found} - keep
        for episode in stale:
            await ProcessSandbox(self, episode).erase()
            if snapshots:
                await self.forget_snapshots(episode)
        return sorted(stale)

    async def make_room(self, sandbox: ProcessSandbox, needed: Callable[[], Awaitable[set[str]]]) -> None:
        """There is no quota."""

    async def forget_snapshots(self, episode: str, keep: str = "") -> int:
        """See `sandboxes.base.SandboxFactory`. What a snapshot that was cut short left goes too."""
        stale = [path for path in ProcessSandbox(self, episode).snapshots.glob("*") if str(path) != keep]
        for path in stale:
            await asyncio.to_thread(shutil.rmtree, path)
        return sum(not path.name.startswith(".") for path in stale)

    def census(self) -> dict[str, dict[str, int]]:
        """See `sandboxes.base.SandboxFactory`."""
        return {"processes": census(self._opened)}

    async def close(self) -> None:
        """Nothing is held; sandboxes stay, to be adopted."""


class ProcessSandbox(ShellSandbox):
    """One directory and the processes that carry its mark."""

    def __init__(self, factory: ProcessSandboxes, episode: str) -> None:
        name = quote(episode, safe="").replace(".", "%2E")
        self.folder = factory.folder / name
        self.snapshots = factory.folder / SNAPSHOTS / name
        self._me = secrets.token_hex(8)
        self._paths = Paths(*(str(self.folder / name) for name in Paths._fields))
        super().__init__(episode, self._paths, alone=False)

    async def open(self) -> None:
        """Become the owner of the directory that was just made, and open its first shell."""
        self._write_owner()
        self._channel = await self._open(await self._join(), blame=TaskFailure)

    async def take_over(self) -> None:
        """Become the owner, and open a shell."""
        async with self._lock:
            self._acted = True
            self._write_owner()
            await self._reopen(silent=False)

    def _write_owner(self) -> None:
        new = self.folder / f"owner.{self._me}"
        new.write_text(self._me)
        new.replace(self.folder / "owner")  # whole, however many adopt at once

    async def _check_owner(self) -> None:
        try:
            owner = (self.folder / "owner").read_text()
        except FileNotFoundError:
            raise InfrastructureFailure(f"the sandbox of {self.episode} is gone: no directory {self.folder}") from None
        if owner != self._me:
            raise Adopted(f"the sandbox of {self.episode} in {self.folder} was adopted by another owner")

    async def _join(self) -> PipeStream:
        await self._check_owner()
        mine = {MARK: str(self.folder), "HOME": self._work}
        executor = executor_environment(self._paths, f"klong-supervisor:{self.folder}")
        return await PipeStream.start(cwd=self._work, env={**_environment(), **mine, **executor})

    async def _restart(self) -> tuple[PipeStream, bool]:
        await self._check_owner()
        await self._kill()
        return await self._join(), False

    async def halt(self) -> None:
        async with self._lock:
            await self._check_owner()
            await self._kill()
            await self._reopen(silent=False)
        await super().halt()

    async def snapshot(self, tag: str) -> str:
        """Copy the directory, its processes stopped meanwhile, as Docker pauses them."""
        target = self.snapshots / quote(tag, safe="").replace(".", "%2E")
        async with self._lock:
            await self._check_owner()
            stopped: set[int] = set()
            while not stopped.issuperset(pids := await self._signal(signal.SIGSTOP)):  # they may fork meanwhile
                stopped.update(pids)
            try:
                await asyncio.to_thread(self._copy, target)
            finally:
                await self._signal(signal.SIGCONT)
        return str(target)

    def _copy(self, target: Path) -> None:
        new = target.with_name(f".{target.name}")  # aside, so that a snapshot is whole or absent
        for leftover in (new, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        (new / "work").mkdir(parents=True)
        shutil.copytree(self.folder / "work", new / "work", symlinks=True, dirs_exist_ok=True)
        state = self.folder / "state"
        if state.exists():  # it names this directory
            (new / "state").write_bytes(state.read_bytes().replace(f"{self.folder}/".encode(), HERE))
        new.replace(target)

    def restore(self, image: Path) -> None:
        """Make the directory from a snapshot."""
        if not image.is_dir():
            raise InfrastructureFailure(f"no snapshot at {image}")
        shutil.copytree(image, self.folder, symlinks=True)
        state = self.folder / "state"
        if state.exists():
            state.write_bytes(state.read_bytes().replace(HERE, f"{self.folder}/".encode()))

    async def _remove(self) -> None:
        try:
            await self._check_owner()
        except InfrastructureFailure:  # gone, or another owner's to remove
            return
        await self.erase()

    async def erase(self) -> None:
        """End every process and remove the directory, whoever is the owner; fine if there is none."""
        if self.folder.exists():  # it outlives every process of the sandbox
            await self._kill()
            await asyncio.to_thread(shutil.rmtree, self.folder)

    async def _kill(self) -> None:
        """SIGKILL to every process with this sandbox's mark, until there is none; they may fork meanwhile."""
        (self.folder / "running").unlink(missing_ok=True)
        give_up = time.monotonic() + KILL_S
        while pids := await self._signal(signal.SIGKILL):
            if time.monotonic() > give_up:
                raise InfrastructureFailure(f"processes {pids} of {self.episode} don't die within {KILL_S:g} s")

    async def _signal(self, number: signal.Signals) -> list[int]:
        """Signal every process with this sandbox's mark; which there were."""
        # Reads a file of every process of the host: tens of milliseconds that an event loop must not lose.
        return await asyncio.to_thread(self._signal_marked, number)

    def _signal_marked(self, number: signal.Signals) -> list[int]:
        wanted = f"{MARK}={self.folder}".encode()
        pids = [pid for pid in _processes() if wanted in _environ(pid)]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it ended by itself
        return pids


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


class PipeStream(Stream):
    """A child shell's pipes as a `sandboxes.channel.Stream`: stdout is the terminal, stderr the data lane."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._next = {lane: self._read(lane) for lane in (TERMINAL, DATA)}

    @classmethod
    async def start(cls, *, cwd: str, env: dict[str, str]) -> PipeStream:
        """The shells of sandboxes.supervisor, by one more: for a command `$PPID` must not be this process."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                "sh", "-c", '"$@"; exit', "sh", *COMMAND,
                cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise InfrastructureFailure(f"no shell starts in {cwd}: {error}") from error
        return cls(process)

    async def send(self, data: bytes) -> None:
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def recv(self) -> tuple[int, bytes] | None:
        await asyncio.wait(self._next.values(), return_when=asyncio.FIRST_COMPLETED)
        lane, pending = next((lane, pending) for lane, pending in self._next.items() if pending.done())
        data = b"" if pending.cancelled() else pending.result()
        if not data:
            return None
        self._next[lane] = self._read(lane)
        return lane, data

    def _read(self, lane: int) -> asyncio.Future[bytes]:
        reader = self._process.stdout if lane == TERMINAL else self._process.stderr
        return asyncio.ensure_future(reader.read(RECV_BYTES))

    def ended(self) -> bool:
        return self._process.returncode is not None

    def close(self) -> None:
        for pending in self._next.values():
            pending.cancel()
        self._process.stdin.close()
        if self._process.returncode is None:
            self._process.kill()
