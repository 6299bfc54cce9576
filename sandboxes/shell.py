"""A sandbox behind a supervising shell: what Docker containers and bare processes have in common.

Two shells stand by in a sandbox. The supervisor reads functions and calls from its stdin, is free at all times, and
runs nothing of the agent's. The executor forks itself for each command: so a command costs a fork, and `exit`, `exec`,
an unfinished quote or an endless loop end the fork alone:

    Channel ──stdin──▶ supervisor ─pipe─▶ executor ──▶ its fork: load state · eval command · save state · report
        └───shortcut────────────────┘
            ◀─lane 1── (terminal) ◀────── end mark ◀─────────────────┘ stdout and stderr, one pipe
            ◀─lane 2── (data) file contents, replies of the supervisor

A command is put straight into the executor's pipe where that is in reach (sandboxes.shortcut). Where bash runs it, its
fork says itself how it ended, and the executor once more when the fork has exited: what is asked next waits for that.

Each command has a process group of its own. When its time is up, the channel tells the supervisor, which kills it with
all that it began. When the owner is gone, the supervisor sees the end of its stdin, and bounds the command by itself.
In a command `$$` is the executor, as in any shell that is kept open: a command that kills it takes its shell down.

The state is the working directory and the exported environment, in a file that lives in the sandbox: it survives
the shells, a restart, a snapshot and a change of owner. A command that is killed leaves the state before it.

When one of the two goes (the agent may kill, stop or starve it; its host may restart), the ladder is: open others; if
that fails or the old ones were silent, restart the whole sandbox: its processes end, its files stay.

An adopter first makes itself the owner in its host's books, then opens its supervisor, which ends all others. An
earlier owner that opens one looks into the books before it uses it. So either it sees that it lost the sandbox, or its
supervisor was there when the adopter's ended all others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import posixpath
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext

from klong_rl.failures import EpisodeFailure
from sandboxes.base import Adopted, AgentFailure, ExecResult, HostAway, InfrastructureFailure, TaskFailure
from sandboxes.channel import DATA, TERMINAL, Channel, ChannelLost, Reply, Stream, new_nonce
from sandboxes.command import as_sent, message, pack, upload
from sandboxes.supervisor import KILL_LINE, NOT_A_FILE, WAKE_LINE, WAS_KILLED, Paths, supervisor_script

log = logging.getLogger(__name__)

GRACE_S = 15.0  # past a command's own timeout: what a loaded host may take to kill it and say so
OPEN_S = 30.0  # for a fresh supervisor to say that it is ready
FILES_S = 120.0  # for one `read` or `write_many`
HALT_S = 10.0  # then the sandbox is restarted, which ends everything too
KILLED = 128 + 9
ATTEMPTS = 2  # a shell lost once may be its host's doing; lost twice in a row, with its host up, it is the sandbox's


def census(opened: Iterable[ShellSandbox]) -> dict[str, int]:
    """Of sandboxes that were opened here, those whose shell is not let go of: "held" by an episode, or "ahead"."""
    held = [bool(sandbox.episode) for sandbox in opened if not sandbox.ended()]
    return {"held": sum(held), "ahead": len(held) - sum(held)}


class ShellSandbox(ABC):
    """`sandboxes.base.Sandbox` over a supervising shell; a host says how to reach one."""

    def __init__(self, episode: str, paths: Paths, *, alone: bool) -> None:
        self.episode = episode
        self._work = paths.work
        self._state = paths.state
        self._script = supervisor_script(paths, alone=alone).encode()
        self._channel: Channel | None = None
        self._closed = False
        self._acted = False  # has an agent run anything in it?
        # Waiting for this lock is bounded: each holder has a deadline.
        self._lock = asyncio.Lock()

    def ended(self) -> bool:
        """Whether the shell is known to be gone."""
        return self._channel is None or self._channel.ended()

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

    async def exec(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit: int = 16384,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: str = "",
        apart: bool = False,
    ) -> ExecResult:
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s is {timeout_s}: a command needs a positive, finite timeout")
        text, before = as_sent(command, self._state, stdin=stdin, env=env or {}, cwd=cwd, apart=apart)
        async with self._lock:
            channel = await self._ready()
            self._acted = True
            nonce = new_nonce()
            ask = message(channel.kind, nonce, timeout_s, text)
            started = time.monotonic()
            sent = not before and channel.put(ask)
            try:
                async with self._meanwhile():
                    reply = await channel.call(
                        "klong_exec", ask.decode(), nonce=nonce, before=before, sent=sent,
                        deadline_s=timeout_s + GRACE_S, lane=TERMINAL, limit=output_limit,
                        end_after_s=timeout_s, end=KILL_LINE,
                    )  # fmt: skip
            except ChannelLost as lost:
                return await self._after_loss(lost, time.monotonic() - started)
            seconds = time.monotonic() - started
            errors = await self._stderr(output_limit) if apart else Reply(0, b"", False)
        timed_out = reply.status == KILLED and seconds >= timeout_s
        return ExecResult(
            exit_code=None if timed_out else reply.status,
            stdout=reply.output,
            stderr=errors.output,
            truncated=reply.truncated or errors.truncated,
            timed_out=timed_out,
            seconds=seconds,
        )

    def _meanwhile(self) -> AbstractAsyncContextManager[None]:
        """What a host does while a command runs; it begins without a wait."""
        return nullcontext()

    async def write(self, path: str, data: bytes) -> None:
        await self.write_many({path: data})

    async def write_many(self, files: dict[str, bytes]) -> None:
        if not files:
            return
        archive = pack(files)
        async with self._lock:
            reply = await self._files("klong_unpack", before=upload(archive, f"{self._state}.upload"))
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

    async def _stderr(self, limit: int) -> Reply:
        path = f"{self._state}.stderr"
        reply = await self._files("klong_read", str(sys.maxsize), path, limit=limit)
        if reply.status != 0:
            raise AgentFailure(f"{path} in the sandbox of {self.episode} can't be read: status {reply.status}")
        return reply

    async def halt(self) -> None:
        async with self._lock:
            reply = await self._files("klong_halt", deadline_s=HALT_S)
        if reply.status != 0:
            raise AgentFailure(f"the state of the shell in the sandbox of {self.episode} can't be removed")

    async def forget(self) -> None:
        async with self._lock:
            reply = await self._files("klong_forget", deadline_s=HALT_S)
        if reply.status != 0:
            raise AgentFailure(f"the state of the shell in the sandbox of {self.episode} can't be removed")

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

    async def _after_loss(self, lost: ChannelLost, seconds: float) -> ExecResult:
        interrupted = await self._reopen(silent=lost.silent) and not lost.silent
        note = b"\n[the command took its shell down; files are kept, processes may be gone]\n"
        return ExecResult(
            exit_code=None,
            stdout=lost.output + (b"" if interrupted else note),
            truncated=lost.truncated,
            timed_out=lost.silent,
            seconds=seconds,
            interrupted=interrupted,
        )

    async def _ready(self) -> Channel:
        """The open channel; a fresh one where there is none, where a call was cancelled, or the shell has ended."""
        silent = await self._settle()
        if self._channel is None or self._channel.broken or self._channel.ended():
            await self._reopen(silent=silent)
        return self._channel

    async def _settle(self) -> bool:
        """Wait until the last command has ended in every respect; whether the shell didn't say so in time."""
        if self._channel is None or self._channel.broken or self._channel.settled:
            return False
        try:
            await self._channel.settle(GRACE_S, WAKE_LINE)
        except ChannelLost as lost:
            return lost.silent
        return False

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
        channel.kind = reply.output.decode()
        await self._opened(stream)
        return channel

    async def _opened(self, stream: Stream) -> None:  # noqa: B027
        """What a host does with a new shell that works."""

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
