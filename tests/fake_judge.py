"""A test double of a judge model: an OpenAI-compatible endpoint on this machine that answers as it is told.

It keeps a rate as real ones do: a bucket of `requests_per_s` tokens that fills at that pace; what comes when it is
empty gets 429 with Retry-After. `answers` are for the next requests: a status (with a text), a text, a whole JSON body,
or CUT, a connection that breaks in the middle of the answer; after them `answer(messages)` is asked. Anthropic's
messages are answered too.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

Messages = list[dict[str, str]]
CUT = object()


def coin(messages: Messages) -> str:
    """Score 0 or 1, the same for the same question."""
    return f"I looked.\nScore: {hashlib.sha256(repr(messages).encode()).digest()[0] % 2}"


class FakeJudge:
    """`async with FakeJudge() as judge`: listens at `judge.url` meanwhile. `asked` are the requests it answered."""

    def __init__(
        self,
        answer: Callable[[Messages], str] = coin,
        *,
        requests_per_s: float = float("inf"),
        takes_s: float = 0.0,
        answers: list[Any] | None = None,
        headers: dict[str, str] | None = None,
        takes_schema: bool = True,
        port: int = 0,
    ) -> None:
        self._answer, self._rate, self._takes_s = answer, requests_per_s, takes_s
        self.port = port
        self.answers = answers or []
        self._headers = headers or {}
        self._takes_schema = takes_schema
        self.asked: list[dict[str, Any]] = []
        self.came: list[float] = []  # monotonic clock, refused ones included
        self.keys: list[str] = []
        self.refused = 0
        self.opened = asyncio.Event()  # clear it to hold every answer back
        self.opened.set()
        self.under_way = self.most_under_way = 0
        self._tokens, self._filled_at = max(1.0, requests_per_s), time.monotonic()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/messages", self._complete)
        self._runner = web.AppRunner(app, handler_cancellation=True)  # a caller that goes ends its request
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        self.came.append(time.monotonic())
        self.keys.append(request.headers.get("Authorization", ""))
        if not self._has_token():
            self.refused += 1
            return web.json_response(
                {"error": "too many"}, status=429, headers={"Retry-After": f"{1 / self._rate:.3f}"}
            )
        told = self.answers.pop(0) if self.answers else None
        if isinstance(told, int):
            return web.json_response({"error": f"told to say {told}"}, status=told, headers=self._headers)
        if isinstance(told, tuple):
            return web.json_response({"error": told[1]}, status=told[0])
        if told is CUT:
            return await self._cut(request)
        body = await request.json()
        if "response_format" in body and not self._takes_schema:
            return web.json_response({"error": "response_format is unknown"}, status=400)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self._takes_s)
            await self.opened.wait()
        finally:
            self.under_way -= 1
        self.asked.append(body)
        if isinstance(told, dict):
            return web.json_response(told)
        text = self._answer(body["messages"]) if told is None else told
        tokens = body.get("max_tokens", len(text))
        if request.path.endswith("messages"):
            return web.json_response(
                {
                    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": text}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": 7, "output_tokens": 3},
                }
            )
        choice = {
            "index": 0,
            "finish_reason": "length" if len(text) > 4 * tokens else "stop",
            "message": {"role": "assistant", "content": text},
        }
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        return web.json_response(
            {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        )

    @staticmethod
    async def _cut(request: web.Request) -> web.StreamResponse:
        """A part of an answer, then nothing."""
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "Sco')
        request.transport.abort()
        return response

    def _has_token(self) -> bool:
        if self._rate == float("inf"):
            return True
        now = time.monotonic()
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
