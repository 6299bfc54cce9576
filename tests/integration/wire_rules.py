"""The transition scripts seen from the wire: which arguments are well-formed, and what the rules make of them.

It says a second time, in Python, what the scripts check, so that a check that a script lacks is noticed.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from klong_rl.buffer.records import WindowRef
from klong_rl.buffer.rules import Rules
from klong_rl.types import Verdict, Window
from klong_rl.wire import HEADER_BYTES, KINDS

SPEC, SEGMENT, OUTCOME, VERDICT, WINDOW, TURN = 1, 2, 3, 4, 5, 6
assert {kind.__name__: n for kind, n in KINDS.items() if n < 7} == {
    "EpisodeSpec": SPEC, "Segment": SEGMENT, "Outcome": OUTCOME, "Verdict": VERDICT, "Window": WINDOW, "Turn": TURN,
}  # fmt: skip


class Malformed(Exception):
    """Not what a client of ours sends."""


def need(condition: Any) -> None:
    if not condition:
        raise Malformed


def text(argument: bytes) -> str:
    return argument.decode("latin-1")  # any bytes, each to itself


def integer(argument: bytes, least: float = float("-inf")) -> int:
    need(len(argument) <= 15 and re.fullmatch(rb"-?[0-9]+", argument) and int(argument) >= least)
    return int(argument)


def number(argument: bytes) -> float:
    digits = re.sub(rb"e[+-]?[0-9]+\Z", b"", argument)
    need(len(digits) <= 25 and re.fullmatch(rb"-?[0-9]+\.?[0-9]*", digits))
    need(abs(float(argument)) < float("inf"))
    return float(argument)


def header(argument: bytes, kind: int) -> int:
    """Bytes of the frame that it announces."""
    need(len(argument) >= HEADER_BYTES)
    magic, found, _, length = struct.unpack_from("<2sBBI", argument)
    need(magic == b"KL" and found == kind)
    return HEADER_BYTES + length


def frame(argument: bytes, kind: int) -> bytes:
    need(header(argument, kind) == len(argument))
    return argument


@dataclass(frozen=True)
class Ended:
    """An outcome to the scripts: its frame, and beside it the kind and the tokens that they count."""

    frame: bytes
    kind: str
    tokens: tuple[tuple[str, int], ...] = ()

    def sampled(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for what, n in self.tokens:
            found[what] += n
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ended) and self.frame == other.frame


@dataclass(frozen=True)
class Spec:
    id: str
    group: str
    group_size: int
    purpose: str
    frame: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.frame == other.frame


def admit(m: Rules, id: bytes, group: bytes, size: bytes, purpose: bytes, spec: bytes) -> bool:
    need(purpose in (b"train", b"eval"))
    return m.admit(Spec(text(id), text(group), integer(size, 1), text(purpose), frame(spec, SPEC)))


def append(m: Rules, id: bytes, epoch: bytes, seq: bytes, *pairs: bytes) -> None:
    need(2 <= len(pairs) <= 64 and len(pairs) % 2 == 0)
    first, several = integer(seq, 0), list(zip(pairs[::2], pairs[1::2], strict=True))
    for head, tokens in several:
        need(len(head) == HEADER_BYTES and header(head, SEGMENT) and integer(tokens, 0) >= 0)
    for i, (head, tokens) in enumerate(several):
        m.append(text(id), integer(epoch), first + i, int(tokens), head)


def part_group(m: Rules, group: bytes, rest: bytes, least: bytes) -> bool:
    return m.part_group(text(group), text(rest), integer(least, 1))


def close_group(m: Rules, group: bytes, *windows: bytes) -> bool:
    need(len(windows) % 4 == 0)
    made = []
    for id, packed, tokens, window in zip(*(windows[i::4] for i in range(4)), strict=True):
        n, _ = integer(tokens), frame(window, WINDOW)
        try:
            ref = msgspec.msgpack.decode(packed, type=WindowRef)
        except (msgspec.DecodeError, ValueError) as error:
            raise Malformed from error
        need((ref.id.encode(), ref.n_tokens, ref.group.encode()) == (id, n, group) and ref.versions)
        made.append(
            Window(
                id=text(id), episode="", group=text(group), stage=ref.stage, tokens_T=np.zeros(n, np.int32),
                targets_T=np.zeros(0, np.uint8), logprobs_T=np.zeros(0, np.float32),
                versions=tuple((version, 1) for version in ref.versions),
            )
        )  # fmt: skip
    need(len({window.id for window in made}) == len(made))
    return m.close_group(text(group), made)


def lease(m: Rules, step: bytes, n_groups: bytes, oldest: bytes, *dead: bytes) -> Any:
    return m.lease(integer(step, 0), integer(n_groups, 1), integer(oldest), [integer(one) for one in dead])


def seal(m: Rules, id: bytes, epoch: bytes, outcome: bytes, kind: bytes, *sampled: bytes) -> None:
    need(len(sampled) % 2 == 0)
    tokens = [(text(what), integer(n, 0)) for what, n in zip(sampled[::2], sampled[1::2], strict=True)]
    m.seal(text(id), integer(epoch), Ended(frame(outcome, OUTCOME), text(kind), tuple(tokens)))


def extend(m: Rules, group: bytes, timeout_s: bytes, max_turns: bytes) -> bool:
    seconds, turns = number(timeout_s), integer(max_turns, 1)
    need(seconds > 0)
    return m.extend(text(group), seconds, turns)


# By transition: how the model carries out well-formed arguments. Malformed for others, Refused as the rules say.
SCRIPTS: dict[str, Callable[..., Any]] = {
    "admit": admit,
    "claim": lambda m, owner, request: m.claim(text(owner), text(request)),
    "intend": lambda m, id, epoch, seq, tokens, turn: m.intend(
        text(id), integer(epoch), integer(seq, 0), integer(tokens, 0), frame(turn, TURN)
    ),
    "append": append,
    "rewind": lambda m, id, epoch, n, why: m.rewind(text(id), integer(epoch), integer(n, 0), text(why)),
    "keep_snapshot": lambda m, id, epoch, n, image: m.keep_snapshot(text(id), integer(epoch), integer(n), text(image)),
    "extend": extend,
    "seal": seal,
    "requeue": lambda m, id, epoch, why: m.requeue(text(id), integer(epoch), text(why)),
    "abandon": lambda m, owner, why, request: m.abandon(text(owner), text(why), text(request)),
    "drop": lambda m, id, why, epoch: m.drop(text(id), text(why), integer(epoch) if epoch else None),
    "next_to_judge": lambda m, owner, ms, request: m.next_to_judge(text(owner), integer(ms), text(request), 0),
    "verdict": lambda m, id, epoch, verdict, score: m.verdict(
        text(id), integer(epoch), Verdict(score=number(score), evidence={"frame": text(frame(verdict, VERDICT))})
    ),
    "close_group": close_group,
    "part_group": part_group,
    "lease": lease,
    "commit": lambda m, step: m.commit(integer(step)),
    "rollback": lambda m, step: m.rollback(integer(step)),
    "publish_version": lambda m, floor, request: m.publish_version(integer(floor), text(request)),
    "forget": lambda m, group: m.forget(text(group)),
}


def obey(model: Rules, name: str, arguments: list[bytes]) -> Any:
    """What the rules answer. Raises Malformed for arguments that aren't well-formed, and what the rules refuse."""
    try:
        return SCRIPTS[name](model, *arguments)
    except TypeError as error:
        if "positional argument" in str(error):
            raise Malformed from error
        raise
