"""Answers in OpenAI's shapes: a whole chat completion, or the events of one that is streamed. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from actors.chat_request import ChatRequest
from actors.record import Answer
from klong_rl.agents import MODEL
from klong_rl.types import Turn

Spell = Callable[[int], str]  # the text of one token


def model() -> dict[str, Any]:
    return {"id": MODEL, "object": "model", "created": 0, "owned_by": "klong_rl"}


def whole(answer: Answer, request: ChatRequest, spell: Spell) -> dict[str, Any]:
    """A chat completion."""
    choice = {
        "index": 0,
        "message": _message(answer),
        "logprobs": logprobs(answer.turn, spell) if request.logprobs else None,
        "finish_reason": finish_reason(answer),
    }
    return _head("chat.completion") | {"choices": [choice], "usage": usage(answer)}


class Stream:
    """The events of one streamed chat completion, in the order of its methods."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._head = _head("chat.completion.chunk")
        self._n_heard = 0

    def opening(self) -> dict[str, Any]:
        return self._event({"role": "assistant", "content": ""})

    def text(self, text: str) -> dict[str, Any]:
        self._n_heard += len(text)
        return self._event({"content": text})

    def end(self, answer: Answer, spell: Spell) -> Iterator[dict[str, Any]]:
        """What is left of the answer, why it ended, and what it took if that was asked for."""
        message = _message(answer)
        if rest := (message["content"] or "")[self._n_heard :]:
            yield self._event({"content": rest})
        if calls := message.get("tool_calls"):
            yield self._event({"tool_calls": [call | {"index": number} for number, call in enumerate(calls)]})
        found = logprobs(answer.turn, spell) if self._request.logprobs else None
        yield self._event({}, finish_reason(answer), found)
        if self._request.include_usage:
            yield self._head | {"choices": [], "usage": usage(answer)}

    def _event(self, delta: dict[str, Any], finish: str | None = None, found: Any = None) -> dict[str, Any]:
        return self._head | {"choices": [{"index": 0, "delta": delta, "logprobs": found, "finish_reason": finish}]}


def usage(answer: Answer) -> dict[str, int]:
    sampled = len(answer.turn.action_A)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": sampled,
        "total_tokens": answer.prompt_tokens + sampled,
    }


def finish_reason(answer: Answer) -> str:
    return "tool_calls" if answer.message.tool_calls else answer.finish


def logprobs(turn: Turn, spell: Spell) -> dict[str, Any]:
    """Of each token sampled, its end included."""
    found = []
    for token, logprob in zip(turn.action_A.tolist(), turn.logprobs_A.tolist(), strict=True):
        text = spell(token)
        found.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
    return {"content": found, "refusal": None}


def _head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": MODEL}


def _message(answer: Answer) -> dict[str, Any]:
    said = answer.message
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.tool_calls:
        message["content"] = said.content or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.tool_calls
        ]
    return message
