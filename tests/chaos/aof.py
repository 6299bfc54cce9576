"""Redis' append-only file as what it is: every change of the buffer, in order, each transition whole.

A script is written to the file as its effects, in one MULTI ... EXEC when they are several. So a transition is one
`Transaction` here, and what Redis held at any moment can be told from the file alone, without asking the code under
test. (Multi-part files: a base, and what was written since. A base that a rewrite made has forgotten its history.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MANIFEST = "appendonly.aof.manifest"
Command = tuple[bytes, ...]


class Rewritten(Exception):
    """The file was rewritten, so the history before that is gone."""


class Corrupt(Exception):
    """Not an append-only file, or damaged before its end."""


class Transaction(NamedTuple):
    """Commands that took effect together. `position` is where they end, in bytes of the increment."""

    position: int
    commands: list[Command]


def increment(folder: Path) -> Path:
    """The one file that holds everything since the run began. Raises Rewritten, Corrupt."""
    manifest = folder / MANIFEST
    files = [line.split() for line in manifest.read_text().splitlines() if line.strip()]
    parts = [(words[5], int(words[3]), folder / words[1]) for words in files if words[0] == "file"]
    increments = [path for kind, _, path in parts if kind == "i"]
    if any(sequence > 1 for _, sequence, _ in parts) or len(increments) > 1:
        raise Rewritten(
            f"{manifest} names {[path.name for *_, path in parts]}: Redis rewrote the file (it grew past "
            "auto-aof-rewrite-min-size, 64 MB), so the history is not whole; audit a shorter run"
        )
    if not increments:
        raise Corrupt(f"{manifest} names no increment")
    return increments[0]


def transactions(path: Path) -> Iterator[Transaction]:
    """All whole transactions of one file. What a crash left half written at its end is left out, as Redis does."""
    pending: list[Command] | None = None
    for position, command in _commands(path.read_bytes()):
        name = command[0].upper()
        if name == b"MULTI":
            pending = []
        elif name == b"EXEC":
            yield Transaction(position, pending or [])
            pending = None
        elif name == b"SELECT":
            continue
        elif pending is not None:
            pending.append(command)
        else:
            yield Transaction(position, [command])


def _commands(data: bytes) -> Iterator[tuple[int, Command]]:
    """(end, command) of each whole command in RESP: *N, then N times $LENGTH and as many bytes."""
    at = 0
    while at < len(data):
        if data[at : at + 1] == b"#":  # a timestamp
            at = data.find(b"\r\n", at) + 2
            if at == 1:
                return
            continue
        words: list[bytes] = []
        count, at_word = _number(data, at, b"*")
        while count is not None and len(words) < count:
            length, begin = _number(data, at_word, b"$")
            if length is None or begin + length + 2 > len(data):
                return
            words.append(data[begin : begin + length])
            at_word = begin + length + 2
        if count is None:
            return
        at = at_word
        yield at, tuple(words)


def _number(data: bytes, at: int, mark: bytes) -> tuple[int | None, int]:
    """The number behind `mark` and where the line after it begins; None if the file ends first."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None, at
    if data[at : at + 1] != mark:
        raise Corrupt(f"byte {at}: {data[at : at + 20]!r} where {mark.decode()}NUMBER was expected")
    return int(data[at + 1 : end]), end + 2
