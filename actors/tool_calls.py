"""Tool calls out of a sampled text, by vLLM's parser for the model's format (`agent.endpoint.tool_parser`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from klong_rl.conversation import Message, ToolCall
from klong_rl.errors import UserError


def tool_parser(name: str, tokenizer: Any) -> Callable[[str, Sequence[dict[str, Any]]], Message]:
    """What reads the assistant's message from a text, with the tools it may call. UserError for an unknown name.

    What isn't a call in the model's format stays text.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    try:
        parser = ToolParserManager.get_tool_parser(name)
    except KeyError as error:
        known = ", ".join(sorted(ToolParserManager.list_registered()))
        raise UserError(f"agent.endpoint.tool_parser={name} is none of vLLM's; use one of {known}") from error

    def message(text: str, tools: Sequence[dict[str, Any]]) -> Message:
        request = ChatCompletionRequest(messages=[], tools=list(tools))
        found = parser(tokenizer, request.tools).extract_tool_calls(text, request)
        if not found.tools_called:
            return Message("assistant", text)
        calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in found.tool_calls)
        return Message("assistant", found.content or "", calls)

    return message
