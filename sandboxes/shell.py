"""A sandbox behind a supervising shell: what Docker containers and bare processes have in common.

The supervisor is a POSIX `sh` that reads functions and calls from its stdin and never runs a command of the agent
itself. Each command gets a child in a process group of its own (`timeout` makes it, and kills all of it), so that
`exit`, `exec`, `kill -9 $$`, an unfinished quote or an endless loop end that child only:

    Channel ──stdin──▶ supervisor ──▶ timeout -s KILL T ──▶ bash or sh: load state · eval command · save state
            ◀─lane 1── (terminal) ◀───────────────────────────┘ stdout and stderr, one pipe
            ◀─lane 2── (data) file contents, replies of the supervisor

The state is the working directory and the exported environment, in a file that lives in the sandbox: it survives
the supervisor, a restart, a snapshot and a change of owner. A command that is killed leaves the state before it.

When the supervisor itself goes (the agent may kill, stop or starve it; its host may restart), the ladder is: open
another; if that fails or the old one was silent, restart the whole sandbox: its processes end, its files stay.

An adopter first makes itself the owner in its host's books, then opens its supervisor, which ends all others. An
earlier owner that opens one looks into the books before it uses it. So either it sees that it lost the sandbox, or its
supervisor was there when the adopter's ended all others.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
import posixpath
import tarfile
import time
from abc import ABC, abstractmethod

from klong_rl.failures import EpisodeFailure
from sandboxes.base import Adopted, AgentFailure, ExecResult, HostAway, InfrastructureFailure, TaskFailure
from sandboxes.channel import DATA, TERMINAL, Channel, ChannelLost, Reply, Stream
from sandboxes.supervisor import NOT_A_FILE, WAS_KILLED, supervisor_script

log = logging.getLogger(__name__)

GRACE_S = 15.0  # past a command's own timeout: what a loaded host may take to kill it and say so
OPEN_S = 30.0  # for a fresh supervisor to say that it is ready
FILES_S = 120.0  # for one `read` or `write_many`
HALT_S = 10.0  # then the sandbox is restarted, which ends everything too
ARG_BYTES = 96 * 1024  # Linux takes 128 KiB in one argument; longer commands go through a file
UPLOAD_BYTES = 768 * 1024  # of a tar file in one shell word, 1 MiB as base64: bounds the supervisor's memory
KILLED = 128 + 9
ATTEMPTS = 2  # a shell lost once may be its host's doing; lost twice in a row, with its host up, it is the sandbox's


def pack(files: dict[str, bytes]) -> bytes:
    """A tar file of `files`; ValueError for a path that is absolute, empty or leaves the directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            normal = posixpath.normpath(path)
            if posixpath.isabs(path) or normal == "." or normal.split("/")[0] == ".." or "\0" in path:
                raise ValueError(f"path {path!r} is not inside the working directory: give one relative to it")
            entry = tarfile.TarInfo(normal)
            entry.size, entry.mode, entry.mtime = len(data), 0o644, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class ShellSandbox(ABC):
    """`sandboxes.base.Sandbox` over a supervising shell; a host says how to reach one."""

    def __init__(self, episode: str, *, work: str, state: str, running: str, alone: bool) -> None:
        self.episode = episode
        self._work = work
        self._state = state
        self._script = supervisor_script(work=work, state=state, running=running, alone=alone).encode()
        self._channel: Channel | None = None
        self._closed = False
        self._acted = False  # has an agent run anything in it?
        # Waiting for this lock is bounded: each holder has a deadline.
        self._lock = asyncio.Lock()

    @abstractmethod
    async def _join(self) -> Stream:
        """A new shell in the running sandbox; InfrastructureFailure when it isn't running or can't take one."""

    @abstractmethod
    async def _restart(self) -> tuple[Stream, bool]:
        """End every process of the sandbox, keep its files, start it again with a shell; whether it had stopped."""

    @abstractmethod
    async def _check_owner(self) -> None:
        """Raise Adopted if the sandbox has another owner, InfrastructureFailure if it is gone."""

    @abstractmethod
    async def _remove(self) -> None:
        """End every process and remove every file of the sandbox; fine if it is gone already."""

    async def exec(self, command: str, *, timeout_s: float, output_limit: int = 16384) -> ExecResult:
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s is {timeout_s}: a command needs a positive, finite timeout")
        command = command.replace("\0", "")  # no argument can hold it, and shells drop it from scripts too
        upload = b""
        if len(text := command.encode("utf-8", "replace")) > ARG_BYTES:
            upload, command = self._as_file(text)
        async with self._lock:
            channel = await self._ready()
            self._acted = True
            started = time.monotonic()
            try:
                reply = await channel.call(
                    "klong_exec", f"{max(timeout_s, 0.001):.3f}", command,
                    deadline_s=timeout_s + GRACE_S, lane=TERMINAL, limit=output_limit, before=upload,
                )  # fmt: skip
            except ChannelLost as lost:
                return await self._after_loss(lost, time.monotonic() - started)
            seconds = time.monotonic() - started
        timed_out = reply.status == KILLED and seconds >= timeout_s
        return ExecResult(
            exit_code=None if timed_out else reply.status,
            output=reply.output.decode("utf-8", "replace"),
            truncated=reply.truncated,
            timed_out=timed_out,
            seconds=seconds,
        )

    async def write(self, path: str, data: bytes) -> None:
        await self.write_many({path: data})

    async def write_many(self, files: dict[str, bytes]) -> None:
        if not files:
            return
        archive = pack(files)
        async with self._lock:
            reply = await self._files("klong_unpack", before=self._upload(archive))
        if reply.status != 0:
            reason = reply.output.decode("utf-8", "replace").strip()
            blame = AgentFailure if self._acted else TaskFailure
            raise blame(f"{len(files)} files can't be written in {self._work} of {self.episode}: {reason}")

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        full = posixpath.join(self._work, path)
        if "\0" in full:
            raise FileNotFoundError(f"no file can be named {full!r}")
        async with self._lock:
            reply = await self._files("klong_read", str(limit), full, limit=limit)
        if reply.status == NOT_A_FILE:
            raise FileNotFoundError(f"no regular file {full} in the sandbox of {self.episode}")
        if reply.status != 0:
            raise AgentFailure(f"{full} in the sandbox of {self.episode} can't be read: status {reply.status}")
        return reply.output

    async def halt(self) -> None:
        async with self._lock:
            reply = await self._files("klong_halt", deadline_s=HALT_S)
        if reply.status != 0:
            raise AgentFailure(f"the state of the shell in the sandbox of {self.episode} can't be removed")

    def _upload(self, data: bytes) -> bytes:
        chunks = [data[start : start + UPLOAD_BYTES] for start in range(0, len(data), UPLOAD_BYTES)]
        parts = [b"klong_part '" + base64.b64encode(chunk) + b"'\n" for chunk in chunks]
        return b'rm -rf "$klong_upload"; true > "$klong_upload"\n' + b"".join(parts)

    async def _files(
        self, function: str, *args: str, deadline_s: float = FILES_S, limit: int = 1 << 16, before: bytes = b""
    ) -> Reply:
        """A call that may be made again: so it is, once, when the agent or the host took the shell down."""
        for _ in range(ATTEMPTS):
            channel = await self._ready()
            try:
                return await channel.call(function, *args, deadline_s=deadline_s, lane=DATA, limit=limit, before=before)
            except ChannelLost as lost:
                cause, from_outside = lost, await self._reopen(silent=lost.silent)
        blame = InfrastructureFailure if from_outside else AgentFailure
        raise blame(f"the shell of {self.episode} died twice in {function}: {cause}") from cause

    def _as_file(self, command: bytes) -> tuple[bytes, str]:
        """The upload and the short command that run one too long for an argument, or say that it didn't fit."""
        path = f"{self._state}.upload"
        short = (
            f'if [ "$(wc -c < {path})" -eq {len(command)} ]; then . {path}; '
            f"else echo 'no room for a command of {len(command)} bytes' >&2; false; fi"
        )
        return self._upload(command), short

    async def _after_loss(self, lost: ChannelLost, seconds: float) -> ExecResult:
        interrupted = await self._reopen(silent=lost.silent) and not lost.silent
        note = "\n[the command took its shell down; files are kept, processes may be gone]\n"
        return ExecResult(
            exit_code=None,
            output=lost.output.decode("utf-8", "replace") + ("" if interrupted else note),
            truncated=lost.truncated,
            timed_out=lost.silent,
            seconds=seconds,
            interrupted=interrupted,
        )

    async def _ready(self) -> Channel:
        """The open channel; a fresh one where there is none, where a call was cancelled, or the shell has ended."""
        if self._channel is None or self._channel.broken or self._channel.ended():
            await self._reopen(silent=False)
        return self._channel

    async def _reopen(self, *, silent: bool) -> bool:
        """The ladder of the module's docstring; whether the last shell was lost for reasons outside the sandbox.

        Raises AgentFailure when a restarted sandbox has no working shell.
        """
        if self._closed:
            raise InfrastructureFailure(f"the sandbox of {self.episode} was closed")
        self._hang_up()
        if not silent:
            try:
                return await self._take(await self._join())
            except (Adopted, HostAway):
                raise
            except (ChannelLost, InfrastructureFailure) as error:
                log.info("restarting the sandbox of %s: no new shell in it (%s)", self.episode, error)
        from_outside = False
        for _ in range(ATTEMPTS):
            stream, had_stopped = await self._restart()
            from_outside |= had_stopped
            try:
                await self._take(stream)
                return from_outside
            except ChannelLost as lost:
                cause = lost
        raise AgentFailure(f"the sandbox of {self.episode} has no working shell after a restart: {cause}") from cause

    async def _take(self, stream: Stream) -> bool:
        """Make the shell behind `stream` the only supervisor; whether the last one was lost, rather than killed."""
        channel = await self._open(stream, blame=AgentFailure)
        try:
            await self._check_owner()
            reply = await channel.call("klong_take", deadline_s=OPEN_S, lane=DATA)
        except BaseException:
            channel.close()
            raise
        self._channel = channel
        return reply.status != WAS_KILLED

    async def _open(self, stream: Stream, *, blame: type[EpisodeFailure]) -> Channel:
        """A channel to the shell behind `stream`. Raises `blame` when the sandbox lacks what a supervisor takes."""
        channel = Channel(stream)
        reply = await channel.call("klong_open", deadline_s=OPEN_S, lane=DATA, before=self._script)
        if reply.status != 0:
            channel.close()
            raise blame(f"the sandbox of {self.episode} needs timeout, base64, tar and a directory {self._work}")
        return channel

    async def release(self) -> None:
        self._hang_up()

    async def close(self) -> None:
        self._closed = True
        self._hang_up()
        await self._remove()

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
