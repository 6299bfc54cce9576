"""A file with one line of JSON a learner step, cut back when the run goes back.

What holds: steps strictly grow, across restarts too. Opened at the step that the run was restored to, the lines after
it go (those steps are trained again), and so does a last line that a crash left half written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from klong_rl.durable import fsync

T = TypeVar("T")


class StepLines(Generic[T]):
    """Appends records of `kind`, a msgspec Struct with a field `step`; each is readable once `write` returns."""

    def __init__(self, path: Path, kind: type[T], restored_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [record for record in read_lines(path, kind) if record.step <= restored_step]
            replace_whole(path, b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
        self._last_step = restored_step
        self._file = open(path, "ab")

    def write(self, record: Any) -> None:
        """Append it. ValueError for a step that isn't after the last one written."""
        if record.step <= self._last_step:
            raise ValueError(f"step {record.step} is not after step {self._last_step}, the last in {self._file.name}")
        self._file.write(msgspec.json.encode(record) + b"\n")
        self._file.flush()
        self._last_step = record.step

    def sync(self) -> None:
        """What was written is durable when this returns."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """All records so far, oldest first; none if the file isn't there.

    A last line without its newline is a crash's and is left out. msgspec.DecodeError on any other line that isn't one.
    """
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().split(b"\n")[:-1]]


def replace_whole(path: Path, data: bytes) -> None:
    """Whole or not at all: neither a reader nor a crash sees half of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)
