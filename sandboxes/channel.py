"""A shell kept open over two byte lanes: calls over a stream, whose replies `sandboxes.framing` finds.

One call goes out as shell text that ends in a function of `sandboxes.supervisor.SUPERVISOR`. Its reply is whatever
comes back on the call's lane up to its end mark. There are two lanes because processes left in the background keep
writing to the terminal: file contents travel on a lane of their own, where no command writes by accident.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import shlex
from typing import NamedTuple, Protocol

from sandboxes.framing import Backlog, ReplyReader

TERMINAL = 1  # what commands print, and the end mark of a command
DATA = 2  # file contents and replies of the supervisor
LOOK_S = 0.005  # from a command's early report to a look whether it has ended in every respect: mostly it has
AGAIN_S = 0.5  # between two lines that end a call early: the first may come before there is anything to end


class Stream(Protocol):
    """A duplex byte stream to a shell with two lanes back."""

    async def send(self, data: bytes) -> None:
        """Write all of `data` to the shell's stdin; OSError when the shell is gone."""

    def put(self, data: bytes) -> bool:
        """Write `data` to where the shell would hand it on, if that is in reach; OSError when nobody reads there."""
        return False

    async def recv(self) -> tuple[int, bytes] | None:
        """The next bytes and their lane; None when the shell is gone."""

    def waiting(self) -> tuple[int, bytes] | None:
        """As `recv`, if it need not wait; None if it might, or when the shell is gone."""
        return None

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


class Patience:
    """Until when to wait, and when to send `end`, a line that has a call end early: then, and again each AGAIN_S."""

    def __init__(self, deadline_s: float, end_after_s: float, end: bytes) -> None:
        self._clock = asyncio.get_running_loop().time
        self.end = end
        self.deadline = self._clock() + deadline_s
        self.end_at = self._clock() + end_after_s

    def next_at(self) -> float:
        return min(self.end_at, self.deadline)

    def is_out(self) -> bool:
        """Whether it is time to send it; then the next time is set. Raises TimeoutError past the deadline."""
        now = self._clock()
        if now >= self.deadline:
            raise TimeoutError
        if now < self.end_at:
            return False
        self.end_at = now + AGAIN_S
        return True


def new_nonce() -> str:
    return secrets.token_hex(8)


class Channel:
    """Calls to one supervising shell, one at a time. `broken` once a call was cut short: it can't be used again."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._backlog = Backlog()
        self._in_line = False  # is a line on its way that the next call must not overtake?
        self.broken = False
        self._look: asyncio.TimerHandle | None = None
        self.kind = ""  # of the executor

    async def call(
        self,
        function: str,
        *args: str,
        deadline_s: float,
        lane: int,
        limit: int = 1 << 16,
        before: bytes = b"",
        nonce: str = "",
        sent: bool = False,
        end_after_s: float = math.inf,
        end: bytes = b"",
    ) -> Reply:
        """Send `before`, then call a shell function with a `nonce` used once and `args`, any text but NUL each.

        `sent`: what the function would do with them was `put` already.
        After `end_after_s` seconds without a reply `end` is sent, a line that has the call end early, and then again
        until it does. Raises ChannelLost when the shell dies or gives no reply within `deadline_s` seconds.
        """
        nonce = nonce or new_nonce()
        reader = ReplyReader(nonce, limit)
        patience = Patience(deadline_s, end_after_s, end)
        try:
            if not sent:
                line = " ".join([function, nonce, *map(shlex.quote, args)]) + "\n"
                self._in_line = False
                await self._send(before + line.encode("utf-8", "replace"), patience)
            status = await self._reply(reader, lane, patience)
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

    def put(self, message: bytes) -> bool:
        """Give the executor a message past its supervisor, if that can be done now."""
        try:
            return not self._in_line and self._stream.put(message)
        except OSError:  # nobody reads there any more: the stream will say so
            return False

    async def _send(self, data: bytes, patience: Patience) -> None:
        async with asyncio.timeout_at(patience.deadline):
            await self._stream.send(data)

    async def _reply(self, reader: ReplyReader, lane: int, patience: Patience) -> int:
        if lane == TERMINAL:
            reader.feed(self._backlog.take())
        while True:
            came_on, data = await self._next(patience)
            if came_on == lane:
                if mark := reader.feed(data):
                    if lane == TERMINAL:
                        self._backlog.begin(reader.rest, reader.nonce if mark.early else "")
                    if mark.early:
                        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._take_waiting)
                    return mark.status
            elif came_on == TERMINAL:
                self._backlog.add(data)

    async def _next(self, patience: Patience) -> tuple[int, bytes]:
        """What comes next, with its lane; nothing, once `end` has been sent because it is time."""
        try:
            async with asyncio.timeout_at(patience.next_at()):
                chunk = await self._stream.recv()
        except TimeoutError:
            chunk = (TERMINAL, b"")
        if patience.is_out():  # a flood gives the timeout above no chance
            self._in_line = True  # it may come late, and would end the next command
            await self._send(patience.end, patience)
        if chunk is None:
            raise ConnectionResetError("its stream ended")
        return chunk

    @property
    def settled(self) -> bool:
        """Whether the last call has ended in every respect; where it reported early, that is still to come."""
        return self._backlog.settled

    async def settle(self, deadline_s: float, end: bytes) -> None:
        """Wait for that, and send `end` each AGAIN_S meanwhile. Raises ChannelLost, as `call`.

        A call that follows, sent before, would be lost with a shell that the last one took down.
        """
        try:
            self._take_waiting()
            patience = Patience(deadline_s, AGAIN_S, end)
            while not self.settled:
                came_on, data = await self._next(patience)
                if came_on == TERMINAL:
                    self._backlog.add(data)
        except TimeoutError:
            self.close()
            raise ChannelLost(f"no word of the last command's end within {deadline_s:g} s", silent=True) from None
        except OSError as error:
            self.close()
            raise ChannelLost(f"the shell died after a command: {error}", silent=False) from error

    def _take_waiting(self) -> None:
        """Settle, if that takes no wait."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        while not self.settled and (chunk := self._stream.waiting()):
            came_on, data = chunk
            if came_on == TERMINAL:
                self._backlog.add(data)

    def _lost(self, reader: ReplyReader, reason: str, *, silent: bool) -> ChannelLost:
        output, truncated = reader.output()
        return ChannelLost(reason, silent=silent, output=output, truncated=truncated)

    def ended(self) -> bool:
        """Whether a call would be sent into the void."""
        return self._stream.ended()

    def close(self) -> None:
        self.broken = True
        if self._look is not None:
            self._look.cancel()
        self._stream.close()
