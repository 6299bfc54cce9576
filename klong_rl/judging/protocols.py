"""What is sent to an endpoint and what its answer says, in the two protocols there are. Pure.

openai      POST URL/chat/completions   OpenAI's chat completions, as vLLM and most hosts speak it
anthropic   POST URL/messages           Anthropic's messages; the newest message marks how far its cache may reach

What a model thought is kept apart from what it said: `reasoning_content` or `reasoning`, a leading <think> block,
blocks of type thinking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from klong_rl.config import EndpointConfig

ANTHROPIC_VERSION = "2023-06-01"
MTOK = 1e6
_THINK = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)

Messages = Sequence[Mapping[str, str]]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What requests took, as the endpoint counts it (0 where it doesn't say). `kept` were answered before, for free."""

    requests: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    def __sub__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) - getattr(other, name) for name in self.__struct_fields__})


class Reply(NamedTuple):
    """`refusal` is why the model wouldn't answer, "" if it did; `is_cut`: the answer was longer than it may be."""

    text: str
    thinking: str
    is_cut: bool
    refusal: str
    usage: Usage


class OpenAI:
    path = "chat/completions"

    @staticmethod
    def headers(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    @staticmethod
    def body(config: EndpointConfig, messages: Messages, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        body = {"model": config.model, "messages": [dict(message) for message in messages]}
        body |= {"temperature": config.temperature, "max_tokens": config.reply_tokens}
        if schema is not None:
            named = {"name": schema.get("title", "answer"), "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return _with_extra(body, config.extra)

    @staticmethod
    def read(answer: Any, config: EndpointConfig) -> Reply:
        """Raises ValueError, LookupError, TypeError or AttributeError for what is no chat completion."""
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, thinking = (
            message.get("content") or "",
            message.get("reasoning_content") or message.get("reasoning") or "",
        )
        if not thinking and (match := _THINK.match(text)):
            text, thinking = text[match.end() :], match[1].strip()
        refusal = message.get("refusal") or ("content filter" if finish == "content_filter" else "")
        spent = answer.get("usage") or {}
        usage = _usage(spent.get("prompt_tokens"), spent.get("completion_tokens"), config)
        return Reply(text, thinking, finish == "length", refusal, usage)


class Anthropic:
    path = "messages"

    @staticmethod
    def headers(key: str) -> dict[str, str]:
        return {"anthropic-version": ANTHROPIC_VERSION} | ({"x-api-key": key} if key else {})

    @staticmethod
    def body(config: EndpointConfig, messages: Messages, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """The schema stands in the messages already; this protocol has no field for it."""
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        talk = [dict(message) for message in messages if message["role"] != "system"]
        last = {"type": "text", "text": talk[-1]["content"], "cache_control": {"type": "ephemeral"}}
        talk[-1]["content"] = [last]
        body = {"model": config.model, "messages": talk, "max_tokens": config.reply_tokens}
        body |= {"temperature": config.temperature} | ({"system": system} if system else {})
        return _with_extra(body, config.extra)

    @staticmethod
    def read(answer: Any, config: EndpointConfig) -> Reply:
        """As OpenAI.read."""
        blocks, stop = answer["content"], answer.get("stop_reason")
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thinking = "\n".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        spent = answer.get("usage") or {}
        cache = ("cache_creation_input_tokens", "cache_read_input_tokens")
        prompt = sum(spent.get(name) or 0 for name in ("input_tokens", *cache))
        usage = _usage(prompt, spent.get("output_tokens"), config)
        return Reply(text, thinking, stop == "max_tokens", "stop_reason refusal" if stop == "refusal" else "", usage)


PROTOCOLS = {"openai": OpenAI, "anthropic": Anthropic}


def _with_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`extra` wins; what it sets to null isn't sent: some models refuse a temperature, or name max_tokens otherwise."""
    return {key: value for key, value in (body | dict(extra)).items() if value is not None}


def _usage(prompt: int | None, completion: int | None, config: EndpointConfig) -> Usage:
    prompt, completion = prompt or 0, completion or 0
    usd = (prompt * config.usd_per_mtok_in + completion * config.usd_per_mtok_out) / MTOK
    return Usage(requests=1, prompt_tokens=prompt, completion_tokens=completion, usd=usd)
