"""The socket of an exec, as a `sandboxes.channel.Stream`."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Awaitable
from typing import Any, TypeVar

from sandboxes.base import InfrastructureFailure

T = TypeVar("T")

RECV_BYTES = 1 << 16
_HEADER = 8  # lane, three zero bytes, big-endian uint32 size


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
    """`sock` is what the SDK's `exec_start(socket=True)` returns; the event loop drives it."""

    def __init__(self, sock: Any) -> None:
        self._owner = sock  # holds the HTTP response, whose collection would close the connection
        self._sock: socket.socket = getattr(sock, "_sock", sock)
        if not isinstance(self._sock, socket.socket) or isinstance(self._sock, ssl.SSLSocket):
            sock.close()
            raise InfrastructureFailure("sandboxes need a Docker daemon on unix:// or tcp://, without TLS: tunnel it")
        self._sock.setblocking(False)
        self._demux = Demux()
        self._frames: list[tuple[int, bytes]] = []
        self._waiting = False

    async def send(self, data: bytes) -> None:
        await self._wait(asyncio.get_running_loop().sock_sendall(self._sock, data))

    async def recv(self) -> tuple[int, bytes] | None:
        while not self._frames:
            data = await self._wait(asyncio.get_running_loop().sock_recv(self._sock, RECV_BYTES))
            if not data:
                return None
            self._frames = self._demux.feed(data)[::-1]
        return self._frames.pop()

    async def _wait(self, transfer: Awaitable[T]) -> T:
        self._waiting = True
        try:
            return await transfer
        finally:
            self._waiting = False

    def ended(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close now; or end the stream for the task that waits on it, which must not be left on a closed socket."""
        if self._waiting:
            self._sock.shutdown(socket.SHUT_RDWR)
            return
        self._owner.close()
        self._sock.close()
