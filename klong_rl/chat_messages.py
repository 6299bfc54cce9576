"""Whole conversations as tokens, in the model's own chat template: for requests of agents from outside.

    prompt_T of a new branch    the template's text around the messages' texts, up to where the assistant begins
             that goes on       what follows a sampled action: its end where it was cut, the new messages, the opening

The template is rendered with marks in the place of the messages' texts. What it puts around them is markup; the texts
themselves are encoded without special tokens, so that what a tool printed can't forge a turn. A sampled action is
never rendered: whatever the template would make of its text, its tokens are in the context as they were sampled.
Names, tool schemas and calls that the model did not sample are part of the markup: with the text of a special token
in them they are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from klong_rl.chat import ChatFormat
from klong_rl.conversation import Message, ToolCall

_MARK = re.compile("\u241a(\\d+)\u241a")  # as in klong_rl.chat: no template contains it


class Unrenderable(ValueError):
    """The model's chat template can't show these messages. Says why."""


class MessageFormat:
    """Token ids of any conversation in the template of `chat`."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        tokenizer = chat.tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._special = sorted({*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)})
        self._longest_token = max(map(len, tokenizer.get_vocab()))  # in the vocabulary's own spelling

    def at_least(self, messages: Sequence[Message]) -> int:
        """Tokens that these messages take at least; told without encoding them, however long they are."""
        return sum(len(message.content) for message in messages) // self._longest_token

    def shows_tools(self) -> bool:
        """Whether the template puts tool schemas into the prompt."""
        function = {"name": "a_tool", "description": "", "parameters": {"type": "object", "properties": {}}}
        tool, ask = {"type": "function", "function": function}, [Message("user", "x")]
        return self._render(ask, [tool]) != self._render(ask, [])

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> np.ndarray:
        """prompt_T of a new branch, int32. Raises Unrenderable."""
        return self._encode(self._render(messages, tools), messages)

    def after(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], n: int, action_A: np.ndarray
    ) -> np.ndarray:
        """prompt_T after `action_A`, which answered the first n - 1 messages; message n - 1 is its text. int32.

        Raises Unrenderable.
        """
        # Its calls are left to the template, which may refuse answers of tools that nobody called; their arguments,
        # which are anyone's text, are not. Some templates show either the calls of a message or its text.
        calls = tuple(call._replace(arguments="{}") for call in messages[n - 1].tool_calls)
        for kept in (calls, ()):
            stand_in = Message("assistant", "", kept)
            text = self._render([*messages[: n - 1], stand_in, *messages[n:]], tools, sampled=n - 1)
            _, found, behind = text.rpartition(f"\u241a{n - 1}\u241a")
            _, end, rest = behind.partition(self._chat.end_token)
            if found and end:
                closed = len(action_A) > 0 and action_A[-1] == self._chat.end_id
                return self._encode(rest if closed else end + rest, messages)
        raise Unrenderable(f"the model's chat template doesn't end message {n - 1}, an assistant's, as it ends others")

    def _render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], sampled: int = -1) -> str:
        """The template's text, with a mark in the place of each message's."""
        talk = [self._marked(number, message, number == sampled) for number, message in enumerate(messages)]
        try:
            return self._chat.tokenizer.apply_chat_template(
                talk, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template may raise anything, in its own words
            raise Unrenderable(f"the model's chat template refuses these messages: {error}") from error

    def _marked(self, number: int, message: Message, is_sampled: bool) -> dict[str, Any]:
        content = f"\u241a{number}\u241a" if message.content or is_sampled else ""
        shown: dict[str, Any] = {"role": message.role, "content": content}
        if message.tool_calls:
            shown["tool_calls"] = [self._call(call) for call in message.tool_calls]
        for key, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
            if value:
                shown[key] = value
        return shown

    def _call(self, call: ToolCall) -> dict[str, Any]:
        try:
            arguments = json.loads(call.arguments or "{}")  # as templates want them
        except ValueError:
            arguments = call.arguments
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def refuse_markup(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], after: int = 0) -> None:
        """Raise Unrenderable for the text of a special token where the template would take it for one.

        Messages before number `after` are in a context already.
        """
        named = [text for each in messages[after:] for text in (each.name, each.tool_call_id)]
        named += [text for each in messages[after:] for call in each.tool_calls for text in call]
        for text in (*named, json.dumps(list(tools), ensure_ascii=False)):
            for token in (*self._special, "\u241a"):
                if token in text:
                    raise Unrenderable(f"a name, a tool or a tool call holds {token!r}, which is markup of this model")

    def _encode(self, text: str, messages: Sequence[Message]) -> np.ndarray:
        ids: list[int] = []
        for place, piece in enumerate(_MARK.split(text)):
            ids += self._chat.plain(messages[int(piece)].content) if place % 2 else self._chat.markup(piece)
        return np.array(ids, np.int32)
