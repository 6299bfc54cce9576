"""A model behind an endpoint (a judge, a teacher, an evaluator): queued, rate-limited, retried, cached.

    ask ─▶ kept? ─▶ wait for a turn (klong_rl.judging.lane) ─▶ POST (klong_rl.judging.protocols) ─▶ keep, answer
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
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import httpx

from klong_rl.blocking import in_thread
from klong_rl.config import EndpointConfig
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.lane import Lane, delay_s
from klong_rl.judging.protocols import PROTOCOLS, Messages, Reply, Usage
from klong_rl.judging.queue import RequestQueue
from klong_rl.judging.store import Kept, Store, canonical
from klong_rl.scripted import SCRIPTED, scripted_transport

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


class Refused(InfrastructureFailure):
    """The endpoint won't take this request, whenever it comes: a wrong key, an unknown model, too long a context."""

    def __init__(self, problem: str, status: int, said: str) -> None:
        super().__init__(problem)
        self.status, self.said = status, said


class Answer(NamedTuple):
    """`request` is the hash of what was asked, model and all; `text` is the answer as it came, `is_cut` if it was
    longer than the endpoint gives, `refusal` if the model would not. `seconds` and `usage` are this time's: of one
    that was kept, no second and no cost."""

    request: str
    text: str
    is_cut: bool = False
    thinking: str = ""
    refusal: str = ""
    usage: Usage = Usage()
    seconds: float = 0.0


class Endpoint:
    """One model. `share` is the part of the configured bounds that this process may use; `role` and `key` are for
    people: what the model is, and the setting it comes from.

    Raises UserError for settings that can't work.
    """

    def __init__(
        self,
        config: EndpointConfig,
        store: Store,
        share: float = 1.0,
        *,
        role: str = "judge model",
        key: str = "judge.endpoint",
    ) -> None:
        self._config, self._store, self._role, self._key = config, store, role, key
        self._protocol = PROTOCOLS[config.protocol]
        self.trouble = ""  # the last that an answer didn't come of
        self.takes_schema = config.protocol == "openai"  # until it says that it doesn't
        self._random = random.Random()
        self.queue = RequestQueue(Lane(*self._bounds(share)))
        self._client = httpx.AsyncClient(
            headers=self._protocol.headers(_key(config, key)),
            transport=scripted_transport() if config.url.startswith(SCRIPTED) else None,
            timeout=config.request_timeout_s,
            limits=httpx.Limits(max_connections=config.concurrent, max_keepalive_connections=config.concurrent),
        )

    def _bounds(self, share: float) -> tuple[float, int]:
        """Requests a second, and under way at once, of so much of the whole."""
        return self._config.requests_per_s * share, max(1, int(self._config.concurrent * share))

    def share(self, share: float) -> None:
        """From here on this process may use another part of the configured bounds."""
        self.queue.bound(*self._bounds(share))

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

    async def ask(
        self, messages: Messages, group: Hashable, *, schema: Mapping[str, Any] | None = None, sample: str = ""
    ) -> Answer:
        """What the model says to `messages`, or what it said to them before, if that is `keep`t.

        With `schema` the endpoint is asked to decode by it; `sample` tells answers to the same messages apart. Waits
        for its turn and through the endpoint's troubles, for as long as the caller does. Raises Refused for what
        waiting can't mend.
        """
        body = self._body(messages, schema)
        request = await in_thread(self._store.put, canonical(body | ({"klong_sample": sample} if sample else {})))
        kept = await in_thread(self._store.reply, request)
        if kept is not None:
            return Answer(request, kept.text, thinking=kept.thinking, usage=Usage(kept=1))
        failures, after_s = 0, 0.0
        while True:
            async with self.queue.turn(group, after_s):
                began = time.monotonic()
                try:
                    reply = await self._post(body)
                except _Again as again:  # noted before the turn ends, or the next one would go at once
                    failures += 1
                    after_s = delay_s(failures, again.after_s, self._random)
                    self._note(again, after_s)
                    continue
            return Answer(
                request,
                reply.text,
                reply.is_cut,
                reply.thinking,
                reply.refusal,
                reply.usage,
                time.monotonic() - began,
            )

    async def keep(self, answer: Answer) -> None:
        """Give this answer to the same messages from here on. For those that were valid: others are asked anew."""
        await in_thread(self._store.put_reply, answer.request, Kept(answer.text, answer.thinking))

    def _body(self, messages: Messages, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        config = self._config
        if not config.url or not config.model:
            raise UserError(f"there is no {self._role}: set {self._key}.url=, up to /v1, and {self._key}.model=")
        return self._protocol.body(config, messages, schema)

    def _note(self, again: _Again, after_s: float) -> None:
        if str(again) != self.trouble:
            log.warning("the %s %s: %s; tried again", self._role, self.name, again)
        self.trouble = str(again)
        if again.is_load:
            self.queue.hold(after_s)

    async def _post(self, body: dict[str, Any]) -> Reply:
        """Raises _Again, Refused."""
        url = f"{self._config.url.rstrip('/')}/{self._protocol.path}"
        try:
            answer = await self._client.post(url, json=body)
        except httpx.TimeoutException as error:
            raise _Again(f"no answer within {self._config.request_timeout_s:g} s ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise _Again(f"can't be reached: {error or type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise UserError(f"{self._key}.url={self._config.url} is no URL: {error}") from error
        said = f"HTTP {answer.status_code}: {answer.text[:SHOWN]}"
        if answer.status_code in TRY_AGAIN:
            raise _Again(said, retry_after_s(answer.headers.get("retry-after", "")), answer.status_code in TOO_MUCH)
        if answer.status_code != 200:
            problem = f"the {self._role} {self.name} refused a request with {said}"
            raise Refused(problem, answer.status_code, answer.text)
        try:
            return self._protocol.read(answer.json(), self._config)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Again(f"its answer can't be read as one of {self._config.protocol}: {said}") from error


def _key(config: EndpointConfig, setting: str) -> str:
    if not config.key_env:
        return ""
    key = os.environ.get(config.key_env, "")
    if not key:
        raise UserError(f"{setting}.key_env={config.key_env}: there is no such environment variable, or it is empty")
    return key


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
