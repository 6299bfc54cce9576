"""Which recorded turn a request of an agent goes on from: by its messages, never by its tokens.

    request    [system, user]                            of no turn                a new branch
    request    [system, user, assistant 0, tool]         assistant 0 is turn 0's   goes on from turn 0
    request    [system, user, assistant 0, user']        the same turn again       goes on from turn 0: a fork
    request    [system', user, assistant 0, tool]        edited                    a new branch: all of it is context

A request goes on from the turn whose own request, and answer, are its first messages; of several the longest, and of
equal ones the newest. What an agent changes in a message of its own, or in an answer, it has put there itself. Fields
that no chat template shows (a model's name, a refusal of null) are not compared, nor how JSON is spaced.

Pure: `Conversations` is one episode's memory, nothing is read or written elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

NOTHING = -1  # the turn that a new branch goes on from


class ToolCall(NamedTuple):
    """`arguments` is the JSON text that the model wrote."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One message of a conversation. `content` is text alone."""

    role: str  # system, user, assistant or tool
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool's answer
    name: str = ""

    def identity(self) -> bytes:
        """What two messages that are the same have in common."""
        calls = [(call.id, call.name, _spaced_alike(call.arguments)) for call in self.tool_calls]
        said = [self.role, self.content, calls, self.tool_call_id, self.name]
        return json.dumps(said, ensure_ascii=True).encode()


class Place(NamedTuple):
    """`turn` is gone on from; it is NOTHING for a new branch. The first `n` messages are its request and its answer."""

    turn: int
    n: int


@dataclass
class Conversations:
    """Of one episode: what was asked and answered in which turn."""

    _turns: dict[bytes, int] = field(default_factory=dict)

    def place(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Place:
        """Where a request with these messages and tools goes on."""
        digests = _digests(messages, tools)
        for n in range(len(messages), 0, -1):
            turn = self._turns.get(digests[n - 1])
            if turn is not None:
                return Place(turn, n)
        return Place(NOTHING, 0)

    def remember(self, messages: Sequence[Message], tools: Sequence[Any], answer: Message, turn: int) -> None:
        """Turn `turn` answered this request with `answer`."""
        self._turns[_digests([*messages, answer], tools)[-1]] = turn


def _digests(messages: Sequence[Message], tools: Sequence[Any]) -> list[bytes]:
    """For each message, a digest of it and all before it."""
    digest = xxhash.xxh3_128(json.dumps(list(tools), sort_keys=True).encode())
    found = []
    for message in messages:
        said = message.identity()
        digest.update(len(said).to_bytes(8, "little"))
        digest.update(said)
        found.append(digest.digest())
    return found


def _spaced_alike(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments
