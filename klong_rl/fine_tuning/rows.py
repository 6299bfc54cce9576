"""A row of training data: one trajectory, as chat messages or as token ids. docs/sft.md documents the form for users.

    {"id": "a", "score": 1.0, "messages": [{"role": "user", "content": "Find x."},
                                           {"role": "assistant", "content": "cat notes"},
                                           {"role": "tool", "content": "x is 3"}, ...]}
    {"id": "b", "tokens": [5, 6, 7, 8, 9], "agent": [0, 0, 1, 1, 0]}

Pure. What is wrong with a row is a UserError that names the place, the field, its value and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig
from klong_rl.errors import UserError
from klong_rl.types import Trajectory
from klong_rl.windows import flat


class Message(msgspec.Struct, frozen=True):
    """As chat APIs have it. What a tool prints and what a user says are both observations."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: Any = None


class Fields(msgspec.Struct, frozen=True):
    """What a row may hold; anything else in it is not looked at."""

    id: str | int | None = None
    score: float | None = None
    messages: list[Message] | None = None
    tokens: Any = None
    agent: Any = None


@dataclass(frozen=True)
class Row:
    """`where` is its file and number. `content` is a conversation, or a trajectory in the model's tokens."""

    where: str
    id: str
    score: float | None
    content: Sequence[Message] | Trajectory


def row_of(fields: Any, where: str) -> Row:
    """The row that a JSON object or a line of Parquet, as a dictionary, describes. Raises UserError."""
    try:
        read = msgspec.convert(fields, Fields)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        raise bad(where, place.rstrip("`") or "row", f"{what}; docs/sft.md has the form") from error
    # Without an id, the file's name and the row's number: the same row wherever its folder is.
    identity = Path(where).name if read.id is None else str(read.id)
    if (read.messages is None) == (read.tokens is None):
        raise bad(where, "messages", "give either messages, or tokens with agent")
    if read.messages is not None:
        _check_conversation(read.messages, where)
        return Row(where, identity, read.score, read.messages)
    return Row(where, identity, read.score, of_tokens(identity, read.tokens, read.agent, where))


def bad(where: str, field: str, what: str) -> UserError:
    """The one line for a row that can't be used."""
    return UserError(f"{where}: field {field}: {what}")


def _check_conversation(messages: Sequence[Message], where: str) -> None:
    """System (or none), user, then the agent and what answers it in turn."""
    if not any(message.role == "assistant" for message in messages):
        raise bad(where, "messages", "has no assistant message, so nothing to learn; remove the row")
    before = "system"
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if message.tool_calls:
            raise bad(
                where, f"{field}.tool_calls", "the agent acts by text; write the call into content as it samples it"
            )
        if message.role == "system" and number > 0:
            raise bad(where, f"{field}.role", "a system message stands first or not at all; make it a user message")
        if message.role in ("assistant", "tool") and before == "system":
            raise bad(where, f"{field}.role", f"the {message.role} can't come before the user's task; put that first")
        if message.role == "assistant" and before == "assistant":
            raise bad(where, f"{field}.role", "two assistant messages in a row; join them, or put the answer between")
        before = message.role


def of_tokens(identity: str, tokens: Any, agent: Any, where: str) -> Trajectory:
    """A trajectory from token ids and a mask that is 1 on the agent's. The prefix is what comes before the first."""
    tokens_T = _whole_numbers(tokens, "tokens", where)
    agent_T = _whole_numbers([] if agent is None else agent, "agent", where)
    if len(tokens_T) != len(agent_T):
        raise bad(where, "agent", f"has {len(agent_T)} values for {len(tokens_T)} tokens; give one for each")
    if ((agent_T != 0) & (agent_T != 1)).any():
        raise bad(where, "agent", "must be 1 on the agent's tokens and 0 on all others")
    if not agent_T.any():
        raise bad(where, "agent", "has no 1, so there is nothing to learn; remove the row")
    if agent_T[0]:
        raise bad(where, "agent[0]", "is 1, but nothing predicts the first token; put the prompt before it")
    edges = np.flatnonzero(np.diff(agent_T, append=0)) + 1  # an action starts at every other one
    prefix = int(edges[0])
    return Trajectory(
        id=identity,
        prefix_P=tokens_T[:prefix].astype(np.int32),
        tokens_T=tokens_T[prefix:].astype(np.int32),
        agent_T=agent_T[prefix:].astype(np.uint8),
        starts_K=edges[::2] - prefix,
        ends_K=edges[1::2] - prefix,
    )


def _whole_numbers(values: Any, field: str, where: str) -> np.ndarray:
    """int64 [T]."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise bad(where, field, "must be a flat list of whole numbers") from error
    if array.ndim != 1 or not (array.size == 0 or array.dtype.kind in "iub"):
        raise bad(where, field, f"must be a flat list of whole numbers, not {array.dtype} of {array.ndim} dimensions")
    return array.astype(np.int64)


class Encoder:
    """Rows in the tokens of the model in `folder`, as the agent loop would have made them."""

    def __init__(self, folder: Path, agent: AgentConfig) -> None:
        self._folder, self._agent = folder, agent
        self._vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])

    @cached_property
    def _chat(self) -> ChatFormat:
        """Only rows of messages need one."""
        return ChatFormat(self._folder)

    def trajectory(self, row: Row) -> Trajectory:
        """Raises UserError for a token that the model doesn't have."""
        made = row.content if isinstance(row.content, Trajectory) else self._of_conversation(row.id, row.content)
        for tokens in (made.prefix_P, made.tokens_T):
            if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self._vocabulary:
                odd = tokens[(tokens < 0) | (tokens >= self._vocabulary)][0]
                raise bad(
                    row.where,
                    "tokens",
                    f"{odd} is no token of this model, which has {self._vocabulary}; encode the row with its tokenizer",
                )
        return made

    def check(self, row: Row, max_tokens: int) -> None:
        """Raises UserError for what would only show in training. Of messages, only the prefix is encoded."""
        known = isinstance(row.content, Trajectory)
        prefix_P = self.trajectory(row).prefix_P if known else self._prefix(row.content)
        if len(prefix_P) >= max_tokens:
            what = f"its {len(prefix_P)} tokens leave no room in window.max_tokens={max_tokens}"
            raise bad(row.where, "prefix", f"{what}; raise that, or shorten the task")

    def _of_conversation(self, identity: str, messages: Sequence[Message]) -> Trajectory:
        turns = self._chat.turns(_turns(messages[_first_action(messages) :]), self._agent.observation_tokens)
        return flat(identity, self._prefix(messages), turns)

    def _prefix(self, messages: Sequence[Message]) -> np.ndarray:
        head = messages[: _first_action(messages)]
        system = head[0].content if head[0].role == "system" else self._agent.system
        return self._chat.prefix(system, "\n".join(message.content for message in head if message.role != "system"))


def _first_action(messages: Sequence[Message]) -> int:
    return next(number for number, message in enumerate(messages) if message.role == "assistant")


def _turns(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """(what the agent wrote, what answered it): several messages in a row are one answer."""
    wrote, answers = messages[0].content, []
    for message in messages[1:]:
        if message.role == "assistant":
            yield wrote, "\n".join(answers)
            wrote, answers = message.content, []
        else:
            answers.append(message.content)
    yield wrote, "\n".join(answers)
