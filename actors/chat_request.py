"""OpenAI's chat completions as far as the endpoint speaks them: a request's JSON to a `ChatRequest`, or an `ApiError`.

    taken        messages, tools, stream, stream_options, stop, max_tokens, max_completion_tokens, logprobs
    overridden   what would sample from another distribution than the run's: temperature, top_p, ... (OVERRIDDEN)
    refused      what can't be had without one: n > 1, response_format, tool_choice "required", images, ... (400)
    ignored      everything else: model, user, seed, metadata, ...

Pure. `docs/agents.md` says the same to users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from klong_rl.conversation import Message, ToolCall

OVERRIDDEN = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "min_tokens", "ignore_eos", "bad_words", "allowed_token_ids",
)  # fmt: skip
REFUSED = (
    "functions", "function_call", "audio", "modalities", "prediction", "web_search_options", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MOST_STOPS = 16


class ApiError(Exception):
    """An answer in OpenAI's JSON shape for errors."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class ChatRequest:
    """What is asked for, as far as it is heeded."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    calls_tools: bool = False  # tool calls are looked for in the answer
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    overridden: tuple[str, ...] = ()  # asked for otherwise than the run samples


def parse(body: Any, temperature: float) -> ChatRequest:
    """The request in a JSON body, of a run that samples at `temperature`. Raises ApiError."""
    if not isinstance(body, dict):
        raise bad("the body must be a JSON object", "body")
    _refuse(body)
    plain = {"temperature": temperature, "top_p": 1, "top_k": (-1, 0), "repetition_penalty": 1, "ignore_eos": False}
    tools = _tools(body.get("tools"))
    return ChatRequest(
        messages=_messages(body.get("messages")),
        tools=tools,
        calls_tools=bool(tools) and body.get("tool_choice") != "none",
        stop=_stop(body.get("stop")),
        max_tokens=_max_tokens(body),
        stream=_flag(body, "stream"),
        include_usage=_flag(_object(body, "stream_options"), "include_usage"),
        logprobs=_flag(body, "logprobs"),
        overridden=tuple(name for name in OVERRIDDEN if not _is_plain(body.get(name), plain.get(name, (0, {}, [])))),
    )


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, code, param)


def _is_plain(value: Any, plain: Any) -> bool:
    return value is None or value == plain or (isinstance(plain, tuple) and value in plain)


def _refuse(body: Mapping[str, Any]) -> None:
    for name in REFUSED:
        if body.get(name) is not None:
            raise bad(f"{name} is not supported here", name, "unsupported_parameter")
    if body.get("n") not in (None, 1):
        raise bad(f"n={body['n']} is not supported: ask once for each answer", "n", "unsupported_parameter")
    if body.get("top_logprobs") not in (None, 0):
        raise bad("top_logprobs is not supported: logprobs are of the tokens sampled", "top_logprobs")
    for name, wanted in (("response_format", ("text",)), ("tool_choice", ("auto", "none"))):
        value = body.get(name)
        kind = value.get("type") if isinstance(value, dict) else value
        if value is not None and kind not in wanted:
            text = f"{name}={kind} would need another distribution than the policy's; use {' or '.join(wanted)}"
            raise bad(text, name, "unsupported_parameter")


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise bad("messages must be a list with at least one message", "messages")
    return tuple(_message(message, f"messages[{number}]") for number, message in enumerate(given))


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise bad(f"{where} must be an object", where)
    role = ROLES.get(given.get("role"))
    if role is None:
        raise bad(f"{where}.role={given.get('role')!r} is unknown; use one of {', '.join(ROLES)}", f"{where}.role")
    if given.get("function_call") is not None:
        raise bad(f"{where}.function_call is not supported; use tool_calls", f"{where}.function_call")
    calls = given.get("tool_calls") or []
    if not isinstance(calls, list):
        raise bad(f"{where}.tool_calls must be a list", f"{where}.tool_calls")
    return Message(
        role=role,
        content=_content(given.get("content"), f"{where}.content"),
        tool_calls=tuple(_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)),
        tool_call_id=_text(given.get("tool_call_id"), f"{where}.tool_call_id"),
        name=_text(given.get("name"), f"{where}.name"),
    )


def _content(given: Any, where: str) -> str:
    """The text of a message: parts of text are joined."""
    if not isinstance(given, list):
        return _text(given, where)
    texts = []
    for number, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            raise bad(f"{where}[{number}] is of type {kind}; text alone is supported", f"{where}[{number}]")
        texts.append(_text(part.get("text"), f"{where}[{number}].text"))
    return "".join(texts)


def _call(given: Any, where: str) -> ToolCall:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad(f"{where} must be an object with a function and its name", where)
    arguments = _text(function.get("arguments"), f"{where}.function.arguments")
    return ToolCall(_text(given.get("id"), f"{where}.id"), function["name"], arguments)


def _text(given: Any, where: str) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        raise bad(f"{where} must be a string", where)
    try:
        given.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise bad(f"{where} holds text that is no Unicode: {error.reason}", where) from error
    return given


def _tools(given: Any) -> tuple[dict[str, Any], ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise bad("tools must be a list", "tools")
    for number, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad(f"tools[{number}] must have a function with a name", f"tools[{number}]")
    return tuple(given)


def _stop(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise bad("stop must be a text or a list of texts", "stop")
    if len(texts) > MOST_STOPS:
        raise bad(f"stop has {len(texts)} texts; {MOST_STOPS} at most", "stop")
    return tuple(texts)


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise bad(f"{name}={value!r} must be a whole number from 1", name)
            return value
    return None


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"{name} must be true or false", name)
    return bool(value)


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise bad(f"{name} must be an object", name)
    return value
