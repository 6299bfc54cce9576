"""A sandbox behind a supervising shell: what Docker containers and bare processes have in common.

The supervisor is a POSIX `sh` that reads functions and calls from its stdin and never runs a command of the agent
itself. Each command gets a child in a process group of its own (`timeout` makes it, and kills all of it), so that
`exit`, `exec`, `kill -9 $$`, an unfinished quote or an endless loop end that child only:

    Channel ──stdin──▶ supervisor ──▶ timeout -s KILL T ──▶ bash or sh: load state · eval command · save state
            ◀─lane 1── (terminal) ◀───────────────────────────┘ stdout and stderr, one pipe
            ◀─lane 2── (data) file contents, replies of the supervisor

The state is the working directory and the exported environment, in a file that lives in the sandbox: it survives
the supervisor, a restart, a snapshot and a change of owner. A command that is killed leaves the state before it.

When the supervisor itself goes (the agent may kill, stop or starve it), the ladder is: open another; if that fails or
the old one was silent, restart the whole sandbox, which ends its processes and keeps its files.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
import posixpath
import re
import shlex
import tarfile
import time
from abc import ABC, abstractmethod

from klong_rl.failures import EpisodeFailure
from sandboxes.base import AgentFailure, ExecResult, InfrastructureFailure, TaskFailure
from sandboxes.channel import DATA, TERMINAL, Channel, ChannelLost, Reply, Stream

log = logging.getLogger(__name__)

GRACE_S = 15.0  # past a command's own timeout: what a loaded host may take to kill it and say so
OPEN_S = 30.0  # for a fresh supervisor to say that it is ready
FILES_S = 120.0  # for one `read` or `write_many`
ARG_BYTES = 96 * 1024  # Linux takes 128 KiB in one argument; longer commands go through a file
UPLOAD_BYTES = 768 * 1024  # of a tar file in one shell word, 1 MiB as base64: bounds the supervisor's memory
KILLED = 128 + 9
NOT_A_FILE = 66  # EX_NOINPUT

# POSIX's corners: dash takes `kill -s KILL -- -N` and `kill -0 -N` but not `kill -KILL -- -N`; and
# `true > file` is not `: > file`, since a POSIX shell exits where the redirection of a special built-in fails.
SUPERVISOR = r"""
exec 3>&2 2>/dev/null
klong_end() { printf '\036%s %s\036' "$1" "$2"; }
klong_open() {
  if read -r klong_group < "$klong_running"; then kill -s KILL -- "-$klong_group"; fi
  command -v timeout && command -v base64 && command -v tar && cd "$klong_work"
  klong_end "$1" $? >&3
} >/dev/null
klong_exec() {
  klong_child=$klong_prolog klong_command=$3 \
    timeout -s KILL "$2" "$klong_shell" -c 'eval "$klong_child"' "${klong_shell##*/}" </dev/null 2>&1 3>&-
  klong_status=$?
  if [ $klong_status = 137 ]; then klong_gone; fi
  true > "$klong_running"
  klong_end "$1" $klong_status
}
klong_gone() {  # a killed process may be in the middle of printing: wait for its group, 0.5 s at most
  read -r klong_group < "$klong_running"
  klong_tries=0
  while [ $klong_tries -lt 50 ] && kill -0 "-$klong_group"; do
    sleep 0.01
    klong_tries=$((klong_tries + 1))
  done
}
klong_read() {
  klong_status=66
  if [ -f "$3" ]; then timeout -s KILL 60 head -c "$2" -- "$3" </dev/null >&3; klong_status=$?; fi
  klong_end "$1" $klong_status >&3
}
klong_part() { printf %s "$1" | base64 -d >> "$klong_upload"; }
klong_unpack() {
  tar -xof "$klong_upload" -C "$klong_work" </dev/null >&3 2>&3
  klong_status=$?
  rm -f "$klong_upload"
  klong_end "$1" $klong_status >&3
}
klong_shell=$(command -v bash || command -v sh)
"""

# What a command's shell runs first. It and the command come through the environment, so that `ps` shows neither and
# `pkill -f server.py` doesn't find, and kill, the shell that runs it. It is one line: the line numbers in a shell's
# messages are the command's own. The state is replaced by a rename: a full disk or a kill while saving keeps the old.
PROLOG = (
    "echo $PPID > {running}; [ -r {state} ] && . {state} 2>/dev/null; cd \"$PWD\" 2>/dev/null || cd {work}; "
    "trap '{{ unset klong_child klong_command; export PWD; "
    "export -p > {state}.new && mv -f {state}.new {state}; }} 2>/dev/null' EXIT; "
    "eval 'unset klong_child klong_command;' \"$klong_command\""
)


def supervisor_script(*, work: str, state: str, running: str) -> str:
    """The text that makes a plain `sh` the supervisor of a sandbox.

    `state` must survive a restart of the sandbox and `running`, the process group of the current command, must not:
    its number means another process then. Raises ValueError for a path that a shell would read as more than a word.
    """
    for path in (work, state, running):
        if not re.fullmatch(r"[A-Za-z0-9_./%-]+", path):
            raise ValueError(f"path {path!r} of a sandbox: use letters, digits and _ . / % - alone")
    settings = {
        "klong_work": work,
        "klong_running": running,
        "klong_upload": f"{state}.upload",
        "klong_prolog": PROLOG.format(work=work, state=state, running=running),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()) + SUPERVISOR


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

    def __init__(self, episode: str, *, work: str, state: str, running: str) -> None:
        self.episode = episode
        self._work = work
        self._state = state
        self._script = supervisor_script(work=work, state=state, running=running).encode()
        self._channel: Channel | None = None
        self._closed = False
        # Waiting for this lock is bounded: each holder has a deadline.
        self._lock = asyncio.Lock()

    @abstractmethod
    async def _join(self) -> Stream:
        """A new shell in the running sandbox; InfrastructureFailure when it isn't running or can't take one."""

    @abstractmethod
    async def _restart(self) -> Stream:
        """End every process of the sandbox, keep its files, and start it again with a shell."""

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
            started = time.monotonic()
            try:
                reply = await channel.call(
                    "klong_exec", f"{timeout_s:.3f}", command,
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
            raise TaskFailure(f"{len(files)} files can't be written in {self._work} of {self.episode}: {reason}")

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        full = posixpath.join(self._work, path)
        async with self._lock:
            reply = await self._files("klong_read", str(limit), full, limit=limit)
        if reply.status == NOT_A_FILE:
            raise FileNotFoundError(f"no regular file {full} in the sandbox of {self.episode}")
        if reply.status != 0:
            raise AgentFailure(f"{full} in the sandbox of {self.episode} can't be read: status {reply.status}")
        return reply.output

    def _upload(self, data: bytes) -> bytes:
        chunks = [data[start : start + UPLOAD_BYTES] for start in range(0, len(data), UPLOAD_BYTES)]
        parts = [b"klong_part '" + base64.b64encode(chunk) + b"'\n" for chunk in chunks]
        return b'true > "$klong_upload"\n' + b"".join(parts)

    async def _files(self, function: str, *args: str, limit: int = 1 << 16, before: bytes = b"") -> Reply:
        """A call that may be made again: so it is, once, when the agent's processes took the shell down."""
        for _ in range(2):
            channel = await self._ready()
            try:
                return await channel.call(function, *args, deadline_s=FILES_S, lane=DATA, limit=limit, before=before)
            except ChannelLost as lost:
                cause = lost
                await self._reopen(silent=lost.silent)
        raise AgentFailure(f"the shell of {self.episode} died twice while moving files: {cause}") from cause

    def _as_file(self, command: bytes) -> tuple[bytes, str]:
        """The upload and the short command that run one too long for an argument, or say that it didn't fit."""
        path = f"{self._state}.upload"
        short = (
            f'if [ "$(wc -c < {path})" -eq {len(command)} ]; then . {path}; '
            f"else echo 'no room for a command of {len(command)} bytes' >&2; false; fi"
        )
        return self._upload(command), short

    async def _after_loss(self, lost: ChannelLost, seconds: float) -> ExecResult:
        await self._reopen(silent=lost.silent)
        note = "\n[the command took its shell down; files are kept, processes may be gone]\n"
        return ExecResult(
            exit_code=None,
            output=lost.output.decode("utf-8", "replace") + note,
            truncated=lost.truncated,
            timed_out=lost.silent,
            seconds=seconds,
        )

    async def _ready(self) -> Channel:
        """The open channel; a fresh one when the last call was cancelled or the sandbox was just adopted."""
        if self._channel is None or self._channel.broken:
            await self._reopen(silent=False)
        return self._channel

    async def _reopen(self, *, silent: bool) -> None:
        """The ladder of the module's docstring. Raises AgentFailure when a restarted sandbox has no working shell."""
        if self._closed:
            raise InfrastructureFailure(f"the sandbox of {self.episode} was closed")
        if not silent:
            try:
                return await self._open(await self._join(), blame=AgentFailure)
            except (ChannelLost, InfrastructureFailure) as error:
                log.info("restarting the sandbox of %s: no new shell in it (%s)", self.episode, error)
        try:
            await self._open(await self._restart(), blame=AgentFailure)
        except ChannelLost as lost:
            raise AgentFailure(f"the sandbox of {self.episode} has no working shell after a restart: {lost}") from lost

    async def _open(self, stream: Stream, *, blame: type[EpisodeFailure]) -> None:
        """Make the shell behind `stream` the supervisor. Raises `blame` when the sandbox lacks what that takes."""
        channel = Channel(stream)
        reply = await channel.call("klong_open", deadline_s=OPEN_S, lane=DATA, before=self._script)
        if reply.status != 0:
            channel.close()
            raise blame(f"the sandbox of {self.episode} needs timeout, base64, tar and a directory {self._work}")
        self._channel = channel

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
