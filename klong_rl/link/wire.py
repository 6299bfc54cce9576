"""The connection beside the tensors: a few small messages, and the news that the other side is gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import msgspec

HEAD = 4  # bytes of a message's length
SEND_S = 10.0  # a message is smaller than a socket's buffer: it is gone at once, or the other side is
LARGEST = 1 << 20  # bytes: what is longer is not one of these messages


class LinkLost(Exception):
    """The other side of a weight transfer died, hung or answered with something else."""


class Hello(msgspec.Struct, tag=True):
    """From the process `rank` of the `world` processes of `engine`."""

    engine: str
    rank: int
    world: int


class Meet(msgspec.Struct, tag=True):
    """Where to make the group: a torch TCPStore, and this group's keys in it."""

    port: int
    prefix: str


class Want(msgspec.Struct, tag=True):
    version: int


class Ready(msgspec.Struct, tag=True):
    """The buckets follow in the group."""


class Refused(msgspec.Struct, tag=True):
    why: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Hello | Meet | Want | Ready | Refused).decode


def connect(address: tuple[str, int], until: float) -> socket.socket:
    """A connection to the learner; LinkLost if there is none by `until` (monotonic clock)."""
    try:
        connection = socket.create_connection(address, timeout=max(0.01, until - time.monotonic()))
    except OSError as error:
        raise LinkLost(f"no learner at {address[0]}:{address[1]}: {error}") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send(connection: socket.socket, message: Any) -> None:
    body = _encode(message)
    connection.settimeout(SEND_S)
    try:
        connection.sendall(len(body).to_bytes(HEAD, "big") + body)
    except OSError as error:
        raise LinkLost(f"the other side is gone: {error}") from error


def receive(connection: socket.socket, kind: type, until: float | None) -> Any:
    """The next message, of `kind`, by `until`; without one, whenever it comes. Raises LinkLost for anything else."""
    head = _read(connection, HEAD, until)
    length = int.from_bytes(head, "big")
    if length > LARGEST:
        raise LinkLost(f"a message of {length} bytes: this is no klong_rl at the other side")
    try:
        message = _decode(_read(connection, length, until))
    except msgspec.DecodeError as error:
        raise LinkLost(f"a message that can't be read: {error}") from error
    if isinstance(message, Refused):
        raise LinkLost(message.why)
    if not isinstance(message, kind):
        raise LinkLost(f"{type(message).__name__} came where {kind.__name__} was due")
    return message


def _read(connection: socket.socket, count: int, until: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        connection.settimeout(None if until is None else max(0.001, until - time.monotonic()))
        try:
            part = connection.recv(count - len(parts))
        except TimeoutError as error:
            raise LinkLost("the other side did not answer in time") from error
        except OSError as error:
            raise LinkLost(f"the other side is gone: {error}") from error
        if not part:
            raise LinkLost("the other side is gone")
        parts += part
    return bytes(parts)


class Peers:
    """The connections to the other side of a group, looked at while something is waited for."""

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self._connections = connections

    def check(self) -> None:
        """Raise LinkLost if one is closed."""
        for connection in self._connections:
            connection.setblocking(False)
            try:
                closed = connection.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                continue  # alive, and silent
            except OSError as error:
                raise LinkLost(f"the other side is gone: {error}") from error
            if closed:
                raise LinkLost("the other side is gone")
