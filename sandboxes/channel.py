"""A shell kept open over two byte lanes: framing and capping, which are pure, and the calls over a stream.

One call goes out as shell text that ends in a function of `sandboxes.supervisor.SUPERVISOR`. Its reply is whatever
comes back on the call's lane up to the end mark

    RS nonce SP status RS        RS = 0x1e, nonce = 16 hex digits drawn for this call

The nonce reaches the supervising shell through its stdin alone, so a command's output can't forge the mark by
accident, nor by echoing what it sees. A process of the agent's that spies on that shell can, and so fools its own
agent; whatever is no whole mark is output. There are two lanes because processes left in the background keep writing
to the terminal: file contents travel on a lane of their own, where no command writes by accident.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import shlex
from typing import NamedTuple, Protocol

TERMINAL = 1  # what commands print, and the end mark of a command
DATA = 2  # file contents and replies of the supervisor
AGAIN_S = 0.5  # between two lines that end a call early: the first may come before there is anything to end
BACKLOG_BYTES = 1 << 16  # of what background processes print between two commands; as much as a pipe holds

_STATUS_DIGITS = 3


class Stream(Protocol):
    """A duplex byte stream to a shell with two lanes back."""

    async def send(self, data: bytes) -> None:
        """Write all of `data` to the shell's stdin; OSError when the shell is gone."""

    async def recv(self) -> tuple[int, bytes] | None:
        """The next bytes and their lane; None when the shell is gone."""

    def ended(self) -> bool:
        """Whether the shell is known to be gone, without waiting; what it still sent may be unread."""

    def close(self) -> None:
        """Let go of the stream. Idempotent."""


class Reply(NamedTuple):
    status: int
    output: bytes
    truncated: bool


class ChannelLost(Exception):
    """The shell died (`silent` false) or gave no reply within its deadline (`silent` true) in the middle of a call."""

    def __init__(self, reason: str, *, silent: bool, output: bytes = b"", truncated: bool = False) -> None:
        super().__init__(reason)
        self.silent, self.output, self.truncated = silent, output, truncated


class Capture:
    """The first and the last `limit / 2` bytes of a stream of any length, in memory of `2 * limit` at most."""

    def __init__(self, limit: int) -> None:
        self._head_room = limit - limit // 2
        self._tail_limit = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        self._total += len(data)
        room = self._head_room - len(self._head)
        self._head += data[:room]
        rest = data[room:]
        self._tail += rest[max(0, len(rest) - self._tail_limit) :]
        if len(self._tail) > 2 * self._tail_limit:  # in bulk: each byte is moved once or twice, not once per chunk
            self._trim()

    def _trim(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_limit)]

    @property
    def truncated(self) -> bool:
        return self._total > self._head_room + self._tail_limit

    def value(self) -> bytes:
        self._trim()
        if not self.truncated:
            return bytes(self._head + self._tail)
        missing = self._total - len(self._head) - len(self._tail)
        return bytes(self._head) + b"\n[... %d bytes left out ...]\n" % missing + bytes(self._tail)


class ReplyReader:
    """Takes a lane's bytes in chunks of any size; keeps what precedes the end mark of one call."""

    def __init__(self, nonce: str, limit: int) -> None:
        self._opening = b"\x1e%s " % nonce.encode()
        self._mark = re.compile(b"%s([0-9]{1,%d})\x1e" % (re.escape(self._opening), _STATUS_DIGITS))
        self._pending = b""
        self._capture = Capture(limit)
        self.rest = b""  # what came after the mark: the background's

    def feed(self, data: bytes) -> int | None:
        """The call's status once its end mark is complete, None before that."""
        pending = self._pending + data
        mark = self._mark.search(pending) if self._opening in pending else None
        if mark:
            self._capture.add(pending[: mark.start()])
            self._pending, self.rest = b"", pending[mark.end() :]
            return int(mark[1])
        keep_from = max(0, len(pending) - len(self._opening) - _STATUS_DIGITS)  # a mark may have begun there
        self._capture.add(pending[:keep_from])
        self._pending = pending[keep_from:]
        return None

    def output(self) -> tuple[bytes, bool]:
        """The bytes kept so far, and whether some were left out."""
        if self._pending:  # the call was cut: no mark is coming
            self._capture.add(self._pending)
            self._pending = b""
        return self._capture.value(), self._capture.truncated


class Channel:
    """Calls to one supervising shell, one at a time. `broken` once a call was cut short: it can't be used again."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._backlog = b""
        self.broken = False

    async def call(
        self,
        function: str,
        *args: str,
        deadline_s: float,
        lane: int,
        limit: int = 1 << 16,
        before: bytes = b"",
        end_after_s: float = math.inf,
        end: bytes = b"",
    ) -> Reply:
        """Send `before`, then call a shell function with a fresh nonce and `args`, any text but NUL each.

        After `end_after_s` seconds without a reply `end` is sent, a line that has the call end early, and then again
        until it does. Raises ChannelLost when the shell dies or gives no reply within `deadline_s` seconds.
        """
        nonce = secrets.token_hex(8)
        reader = ReplyReader(nonce, limit)
        line = " ".join([function, nonce, *map(shlex.quote, args)]) + "\n"
        try:
            async with asyncio.timeout(deadline_s):
                await self._stream.send(before + line.encode("utf-8", "replace"))
                status = await self._reply(reader, lane, end_after_s, end)
        except TimeoutError:
            self.close()
            raise self._lost(reader, f"no reply to {function} within {deadline_s:g} s", silent=True) from None
        except OSError as error:
            self.close()
            raise self._lost(reader, f"the shell died during {function}: {error}", silent=False) from error
        except BaseException:  # cancelled: the reply is still to come, so nothing after it could be told apart
            self.close()
            raise
        return Reply(status, *reader.output())

    async def _reply(self, reader: ReplyReader, lane: int, end_after_s: float, end: bytes) -> int:
        clock = asyncio.get_running_loop().time
        end_at = clock() + end_after_s
        if lane == TERMINAL:
            reader.feed(self._backlog)
            self._backlog = b""
        while True:
            try:
                async with asyncio.timeout_at(end_at):
                    chunk = await self._stream.recv()
            except TimeoutError:
                chunk = (lane, b"")
            if clock() >= end_at:  # a flood gives the timeout above no chance
                end_at = clock() + AGAIN_S
                await self._stream.send(end)
            if chunk is None:
                raise ConnectionResetError("its stream ended")
            came_on, data = chunk
            if came_on != lane:
                if came_on == TERMINAL:
                    self._backlog = (self._backlog + data)[-BACKLOG_BYTES:]
                continue
            status = reader.feed(data)
            if status is not None:
                if lane == TERMINAL:
                    self._backlog = reader.rest[-BACKLOG_BYTES:]
                return status

    def _lost(self, reader: ReplyReader, reason: str, *, silent: bool) -> ChannelLost:
        output, truncated = reader.output()
        return ChannelLost(reason, silent=silent, output=output, truncated=truncated)

    def ended(self) -> bool:
        """Whether a call would be sent into the void."""
        return self._stream.ended()

    def close(self) -> None:
        self.broken = True
        self._stream.close()
