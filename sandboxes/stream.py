"""The socket of an exec, as a `sandboxes.channel.Stream`, with a shortcut where there is one."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from sandboxes.shortcut import Shortcut

RECV_BYTES = 1 << 16
_HEADER = 8  # lane, three zero bytes, big-endian uint32 size


class Attached(NamedTuple):
    """A shell that entered a container by exec."""

    socket: Any  # the SDK's
    exec: str  # its id
    token: str  # what klong_token is in its environment


class Demux:
    """Docker's framing of a stream without a terminal, taken in chunks of any size."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(lane, payload) of each frame that `data` completes."""
        self._pending += data
        frames, at = [], 0
        while len(self._pending) - at >= _HEADER:
            size = int.from_bytes(self._pending[at + 4 : at + _HEADER], "big")
            end = at + _HEADER + size
            if len(self._pending) < end:
                break
            frames.append((self._pending[at], bytes(self._pending[at + _HEADER : end])))
            at = end
        del self._pending[:at]
        return frames


class AttachedStream:
    """Driven by the event loop. `sock` is what the SDK's `exec_start(socket=True)` returns, with or without TLS."""

    def __init__(self, sock: Any) -> None:
        self._owner = sock  # holds the HTTP response, whose collection would close the connection
        self._sock: socket.socket = getattr(sock, "_sock", sock)
        self._sock.setblocking(False)
        self._demux = Demux()
        self._frames: list[tuple[int, bytes]] = []
        self._waiting = False
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLRDHUP)
        self.shortcut: Shortcut | None = None

    def put(self, data: bytes) -> bool:
        return self.shortcut is not None and self.shortcut.put(data)

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except ssl.SSLWantReadError:
                await self._readable()
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()

    async def recv(self) -> tuple[int, bytes] | None:
        while not self._frames:
            try:
                data = self._sock.recv(RECV_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._readable()
                continue
            except ssl.SSLWantWriteError:
                await self._writable()
                continue
            if not data:
                return None
            self._frames = self._demux.feed(data)[::-1]
        return self._frames.pop()

    def waiting(self) -> tuple[int, bytes] | None:
        while not self._frames:
            try:
                data = self._sock.recv(RECV_BYTES)
            except OSError:  # nothing is there, or never will be: `recv` tells
                return None
            if not data:
                return None
            self._frames = self._demux.feed(data)[::-1]
        return self._frames.pop()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._wait(loop.add_reader, loop.remove_reader)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._wait(loop.add_writer, loop.remove_writer)

    async def _wait(self, add: Callable[..., None], remove: Callable[[socket.socket], bool]) -> None:
        """asyncio's own `sock_recv` and `sock_sendall` take no TLS socket."""
        ready = asyncio.get_running_loop().create_future()
        add(self._sock, _wake, ready)
        self._waiting = True
        try:
            await ready
        finally:
            self._waiting = False
            remove(self._sock)

    def ended(self) -> bool:
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Close now; or end the stream for the task that waits on it, which must not be left on a closed socket."""
        if self.shortcut is not None:
            self.shortcut.close()
            self.shortcut = None
        if self._waiting:
            self._sock.shutdown(socket.SHUT_RDWR)
            return
        self._owner.close()
        self._sock.close()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
