"""Scripted models: what an endpoint at `scripted://models` answers, in this process, by rules that one can read.

They take the place of a judge (`model=scripted-judge`) and of an evaluator (`model=scripted-evaluator`) in the bundled
examples and in tests. Everything on the way to them, but the network, is that of a real endpoint. They know nothing and
judge by words alone: never use a score of theirs for anything but trying the machinery.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx

from klong_rl.scripted.evaluator import scripted_evaluator
from klong_rl.scripted.judge import scripted_judge

SCRIPTED = "scripted://models"
MODELS: dict[str, Callable[[dict], str]] = {
    "scripted-judge": scripted_judge,
    "scripted-evaluator": scripted_evaluator,
}
CHARS_A_TOKEN = 4  # that it reports


def scripted_transport() -> httpx.MockTransport:
    """A transport whose endpoint is a function of the request: chat completions of MODELS, 404 for any other model."""
    return httpx.MockTransport(_answer)


async def _answer(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    model = MODELS.get(body["model"])
    if model is None:
        known = ", ".join(MODELS)
        return httpx.Response(404, json={"error": f"no scripted model {body['model']!r}; there are {known}"})
    text = model(body)
    usage = {"prompt_tokens": len(request.content) // CHARS_A_TOKEN, "completion_tokens": len(text) // CHARS_A_TOKEN}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return httpx.Response(200, json={"model": body["model"], "choices": [choice], "usage": usage})
