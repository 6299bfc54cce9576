"""One attempt as a file, a line an event, durable before the next thing happens: OUT/attempts/NAME.jsonl

    intended    the teacher's action, before its command runs
    turned      what the command printed
    parked      a snapshot of the sandbox, at a clean stop
    ended       how the attempt ended
    judged      its score

Whoever goes on reads it: nothing that was paid for is asked again, and no command runs twice.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from klong_rl.judging.protocols import Usage


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    pass


class Intended(Event, tag="intended"):
    command: str
    thinking: str = ""
    is_cut: bool = False
    usage: Usage = Usage()
    seconds: float = 0.0
    context_start: int = 0
    turn: bytes = b""  # of our own engine: the Turn on the wire (klong_rl.wire), tokens and all


class Turned(Event, tag="turned"):
    """`is_end`: the action was `submit`, and taken."""

    observation: str
    exit_code: int | None = None
    seconds: float = 0.0
    is_end: bool = False
    turn: bytes = b""  # as in `Intended`, with its observation


class Parked(Event, tag="parked"):
    image: str


class Ended(Event, tag="ended"):
    kind: str
    detail: str = ""


class Judged(Event, tag="judged"):
    score: float
    parts: dict[str, float]
    evidence: dict[str, str]
    usage: Usage = Usage()


AnyEvent = Intended | Turned | Parked | Ended | Judged


class Journal:
    """`intended` and `turned` are as long as each other, or the first is one longer: a command that may have run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.intended: list[Intended] = []
        self.turned: list[Turned] = []
        self.parked = ""
        self.ended: Ended | None = None
        self.judged: Judged | None = None
        self._read()

    @property
    def usage(self) -> Usage:
        spent = sum((each.usage for each in self.intended), Usage())
        return spent + self.judged.usage if self.judged else spent

    @property
    def seconds(self) -> float:
        """Active: of answers and commands."""
        return sum(each.seconds for each in (*self.intended, *self.turned))

    def goes_on_from(self, before: Journal) -> bool:
        """Whether it holds all that `before` did: an attempt that begins anew doesn't."""
        return self.intended[: len(before.intended)] == before.intended

    def add(self, event: AnyEvent) -> None:
        """Durable when this returns. Blocking: a line."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(event)

    def restart(self) -> None:
        """Begin anew: the sandbox is gone, and with it what the commands did. The old file is set aside."""
        number = len(list(self._path.parent.glob(f"{self._path.stem}.lost-*")))
        self._path.rename(self._path.with_suffix(f".lost-{number}"))
        self.__init__(self._path)

    def _read(self) -> None:
        """A last line that was cut off is as if it had never been begun, and is taken out."""
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            self._take(msgspec.json.decode(line, type=AnyEvent))

    def _take(self, event: AnyEvent) -> None:
        match event:
            case Intended():
                self.intended.append(event)
                self.parked = ""  # the snapshot is from before it
            case Turned():
                self.turned.append(event)
            case Parked():
                self.parked = event.image
            case Ended():
                self.ended = event
            case Judged():
                self.judged = event
