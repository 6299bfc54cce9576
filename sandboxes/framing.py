"""Where a reply ends among the bytes of a lane, and what is kept of it. Pure.

The end mark of a call is

    RS nonce SP status RS        RS = 0x1e, nonce = 16 hex digits drawn for this call

The nonce reaches the shells that report an end through their stdin alone, so a command's output can't forge the mark by
accident, nor by echoing what it sees. A process of the agent's that spies on those shells can, and so fools its own
agent; whatever is no whole mark is output.

The status may be followed by EARLY: then all output is there, and the state saved, but the process that ran the command
is still to exit, and its executor to say so, by a mark without it.
"""

from __future__ import annotations

from typing import NamedTuple

BACKLOG_BYTES = 1 << 16  # of what background processes print between two commands; as much as a pipe holds
EARLY = b"r"

_STATUS_BYTES = 4


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


class Mark(NamedTuple):
    """Where an end mark is, and what it says. `early`: another is to come, when the call has ended in every respect."""

    start: int
    end: int
    status: int
    early: bool


def find_mark(data: bytes, nonce: str) -> Mark | None:
    """The first whole end mark of a call in `data`.

    >>> find_mark(b"output\x1e00aa 7\x1erest", "00aa")
    Mark(start=6, end=14, status=7, early=False)
    """
    opening = _opening(nonce)
    start = data.find(opening)
    while start >= 0:
        text, closed, _ = data[start + len(opening) :][: _STATUS_BYTES + 1].partition(b"\x1e")
        status = text.removesuffix(EARLY)
        if closed and status.isdigit():
            return Mark(start, start + len(opening) + len(text) + 1, int(status), status != text)
        start = data.find(opening, start + 1)
    return None


def _opening(nonce: str) -> bytes:
    return b"\x1e%s " % nonce.encode()


class ReplyReader:
    """Takes a lane's bytes in chunks of any size; keeps what precedes the end mark of one call."""

    def __init__(self, nonce: str, limit: int) -> None:
        self.nonce = nonce
        self._mark_bytes = len(_opening(nonce)) + _STATUS_BYTES + 1
        self._pending = b""
        self._capture = Capture(limit)
        self.rest = b""  # what came after the mark: the background's

    def feed(self, data: bytes) -> Mark | None:
        """The call's end mark once it is complete, None before that."""
        pending = self._pending + data
        mark = find_mark(pending, self.nonce)
        if mark:
            self._capture.add(pending[: mark.start])
            self._pending, self.rest = b"", pending[mark.end :]
            return mark
        keep_from = max(0, len(pending) - self._mark_bytes + 1)  # a mark may have begun there
        self._capture.add(pending[:keep_from])
        self._pending = pending[keep_from:]
        return None

    def output(self) -> tuple[bytes, bool]:
        """The bytes kept so far, and whether some were left out."""
        if self._pending:  # the call was cut: no mark is coming
            self._capture.add(self._pending)
            self._pending = b""
        return self._capture.value(), self._capture.truncated


class Backlog:
    """What background processes print between two commands, and where a command reported early, its other end mark."""

    def __init__(self) -> None:
        self._printed = b""
        self._awaited: ReplyReader | None = None

    @property
    def settled(self) -> bool:
        """Whether no mark is to come."""
        return self._awaited is None

    def begin(self, printed: bytes, awaited: str) -> None:
        """After a call, with the nonce of the mark that is to come, if one is."""
        self._printed, self._awaited = b"", ReplyReader(awaited, BACKLOG_BYTES) if awaited else None
        self.add(printed)

    def add(self, printed: bytes) -> None:
        if self._awaited is None:
            self._printed = (self._printed + printed)[-BACKLOG_BYTES:]
        elif self._awaited.feed(printed):
            before, after = self._awaited.output()[0], self._awaited.rest
            self._awaited = None
            self.add(before + after)

    def take(self) -> bytes:
        printed, self._printed = self._printed, b""
        return printed
