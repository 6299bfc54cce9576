"""The judge model behind any OpenAI-compatible endpoint: queued, rate-limited, retried, cached.

    ask ─▶ kept? ─▶ wait for a turn (klong_rl.judging.lane) ─▶ POST /chat/completions ─▶ keep, answer
                         ▲                                        │ 429, 5xx, no answer
                         └──── back-off, Retry-After ◀────────────┘

A request is tried until its caller gives up (the deadline of a grading): an endpoint that is down for a while costs
time, no episode. What trying again can't help (a wrong key, an unknown model) fails at once.
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import time
from collections.abc import Hashable
from typing import Any, NamedTuple

import httpx

from klong_rl.blocking import in_thread
from klong_rl.config import EndpointConfig
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.lane import Lane, delay_s
from klong_rl.judging.queue import RequestQueue
from klong_rl.judging.store import Store, canonical

log = logging.getLogger(__name__)

TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # 529: overloaded, as some servers say it
TOO_MUCH = {429, 503, 529}  # of these the endpoint means everybody
REMINDER_TOKENS = 128  # of what a judge is told of an invalid reply
SHOWN = 300  # characters of an answer that is no reply


class _Again(Exception):
    """The request may succeed later. `after_s` is what the endpoint asked for, `is_load`: it has too much to do."""

    def __init__(self, trouble: str, after_s: float = 0.0, is_load: bool = False) -> None:
        super().__init__(trouble)
        self.after_s, self.is_load = after_s, is_load


class Answer(NamedTuple):
    """`request` is the hash of what was asked, model and all; `text` is the answer as it came, `is_cut` if it was
    longer than the endpoint gives."""

    request: str
    text: str
    is_cut: bool = False


class Endpoint:
    """One judge model. `share` is the part of the configured bounds that this process may use.

    Raises UserError for settings that can't work.
    """

    def __init__(self, config: EndpointConfig, store: Store, share: float = 1.0) -> None:
        self._config, self._store = config, store
        self.trouble = ""  # the last that an answer didn't come of
        self._random = random.Random()
        concurrent = max(1, int(config.concurrent * share))
        self.queue = RequestQueue(Lane(config.requests_per_s * share, concurrent))
        self._client = httpx.AsyncClient(
            headers=_headers(config),
            timeout=config.request_timeout_s,
            limits=httpx.Limits(max_connections=concurrent, max_keepalive_connections=concurrent),
        )

    @property
    def name(self) -> str:
        """Model and place, for people."""
        return f"{self._config.model} at {self._config.url}"

    @property
    def room_tokens(self) -> int:
        """Tokens that messages may have, so that an invalid reply, a word about it and another reply fit too."""
        return self._config.context_tokens - 2 * self._config.reply_tokens - REMINDER_TOKENS

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, messages: list[dict[str, str]], group: Hashable) -> Answer:
        """What the model says to `messages`, or what it said to them before, if that is `keep`t.

        Waits for its turn and through the endpoint's troubles, for as long as the caller does. Raises
        InfrastructureFailure for what waiting can't mend.
        """
        body = self._body(messages)
        request = await in_thread(self._store.put, canonical(body))
        kept = await in_thread(self._store.reply, request)
        if kept is not None:
            return Answer(request, kept)
        failures, after_s = 0, 0.0
        while True:
            async with self.queue.turn(group, after_s):
                try:
                    return Answer(request, *await self._post(body))
                except _Again as again:  # noted before the turn ends, or the next one would go at once
                    failures += 1
                    after_s = delay_s(failures, again.after_s, self._random)
                    self._note(again, after_s)

    async def keep(self, answer: Answer) -> None:
        """Give this answer to the same messages from here on. For those that were valid: others are asked anew."""
        await in_thread(self._store.put_reply, answer.request, answer.text)

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        config = self._config
        if not config.url or not config.model:
            raise UserError(
                "this reward asks a judge model: set judge.endpoint.url=, up to /v1, and judge.endpoint.model="
            )
        sampling = {"temperature": config.temperature, "max_tokens": config.reply_tokens}
        return {"model": config.model, "messages": messages, **sampling}

    def _note(self, again: _Again, after_s: float) -> None:
        if str(again) != self.trouble:
            log.warning("the judge model %s: %s; tried again", self.name, again)
        self.trouble = str(again)
        if again.is_load:
            self.queue.hold(after_s)

    async def _post(self, body: dict[str, Any]) -> tuple[str, bool]:
        """The text of the answer, and whether it was cut off. Raises _Again, InfrastructureFailure."""
        url = f"{self._config.url.rstrip('/')}/chat/completions"
        try:
            answer = await self._client.post(url, json=body)
        except httpx.TimeoutException as error:
            raise _Again(f"no answer within {self._config.request_timeout_s:g} s ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise _Again(f"can't be reached: {error or type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise UserError(f"judge.endpoint.url={self._config.url} is no URL: {error}") from error
        said = f"HTTP {answer.status_code}: {answer.text[:SHOWN]}"
        if answer.status_code in TRY_AGAIN:
            raise _Again(said, retry_after_s(answer.headers.get("retry-after", "")), answer.status_code in TOO_MUCH)
        if answer.status_code != 200:
            raise InfrastructureFailure(f"the judge model {self.name} refused a request with {said}")
        try:
            choice = answer.json()["choices"][0]
            return choice["message"]["content"] or "", choice.get("finish_reason") == "length"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Again(f"its answer is no chat completion: {said}") from error


def _headers(config: EndpointConfig) -> dict[str, str]:
    if not config.key_env:
        return {}
    key = os.environ.get(config.key_env, "")
    if not key:
        raise UserError(
            f"judge.endpoint.key_env={config.key_env}: there is no such environment variable, or it is empty"
        )
    return {"Authorization": f"Bearer {key}"}


def retry_after_s(header: str) -> float:
    """Seconds that a Retry-After asks for: a number or a date; 0 for none, and for what is neither.

    >>> retry_after_s("2.5"), retry_after_s(""), retry_after_s("soon")
    (2.5, 0.0, 0.0)
    """
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
