"""One episode of an agent from outside, as it is asked for and recorded: each answer a turn, one after the other.

    ask      place it (klong_rl.conversation), encode what is new, refuse what doesn't fit or comes too late
    answer   sample ─▶ the turn is in the journal ─▶ the answer is whole for the agent
               │ several at once                    │ one at a time: their order is the record's

Whatever was sampled is recorded, whole or not. What no agent can have acted on is masked: its tokens are in the record,
with the reason, and train nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from actors.agent import ActiveClock
from actors.chat_request import ApiError, ChatRequest, bad
from actors.engine import Engine, Reading, Sample
from actors.journal import Journal
from klong_rl.branches import context_of
from klong_rl.buffer import StaleEpoch
from klong_rl.chain import link
from klong_rl.chat_messages import MessageFormat, Unrenderable
from klong_rl.conversation import Conversations, Message, Place
from klong_rl.failures import InfrastructureFailure
from klong_rl.types import EpisodeSpec, Outcome, Turn
from klong_rl.windows import ContextRule

log = logging.getLogger(__name__)

UNREAD = "its client went away"  # reasons for which a turn is masked
CUT = "the episode ended first"
DRAIN_DEADLINE_S = 60.0  # for requests that were given up: vLLM answers at once, Redis within its own deadline

ToolParser = Callable[[str, Sequence[dict[str, Any]]], Message]  # (sampled text, tools) -> the assistant's message


@dataclass(frozen=True)
class Scaffold:
    """What all episodes of one actor share."""

    engine: Engine
    format: MessageFormat
    rule: ContextRule
    temperature: float
    text_of: Callable[[np.ndarray], str]  # an action, without special tokens
    tool_parser: ToolParser
    said: set[str] = field(default_factory=set)

    @cached_property
    def shows_tools(self) -> bool:
        return self.format.shows_tools()

    def say_once(self, what: str) -> bool:
        """Whether it wasn't said before."""
        new = what not in self.said
        self.said.add(what)
        return new


@dataclass
class Asked:
    """A request on its way. `give_up` ends it as far as it came; `masked` says why."""

    request: ChatRequest
    place: Place
    prompt_T: np.ndarray  # int32, new since the turn it goes on from
    context_T: np.ndarray  # int32, all of it
    max_tokens: int
    give_up: asyncio.Event = field(default_factory=asyncio.Event)
    masked: str = ""

    def abandon(self, reason: str) -> None:
        self.masked = self.masked or reason
        self.give_up.set()


@dataclass(frozen=True)
class Answer:
    """What an agent gets. `turn` holds the tokens."""

    turn: Turn
    message: Message
    finish: str  # vLLM's reason
    prompt_tokens: int


class Record:
    """Of one holder of one episode. `over` is set once the agent can do no more; `limit` or `failure` says why."""

    def __init__(self, scaffold: Scaffold, spec: EpisodeSpec, journal: Journal, turns: Sequence[Turn] = ()) -> None:
        self.turns = list(turns)
        self.timeout_s, self.max_turns = spec.timeout_s, spec.max_turns
        self.over = asyncio.Event()
        self.limit: Outcome | None = None
        self.failure: Exception | None = None
        self.overflowed = False  # by the last request
        self._scaffold = scaffold
        self._episode = spec.id
        self._journal = journal
        self._conversations = Conversations()
        self._clock = ActiveClock(scaffold.engine)
        self._before_s = self._counted_s = sum(turn.seconds for turn in turns)
        self._one_at_a_time = asyncio.Lock()
        self._in_flight: dict[asyncio.Task, Asked] = {}

    def active_s(self) -> float:
        """Active seconds of the episode, those of earlier holders included."""
        return self._before_s + self._clock.seconds()

    def ask(self, request: ChatRequest) -> Asked:
        """Place and encode a request. Raises ApiError."""
        self._refuse_if_over()
        scaffold, place = self._scaffold, self._conversations.place(request.messages, request.tools)
        longest, most = scaffold.rule.max_tokens, scaffold.rule.action_tokens
        max_tokens = min(request.max_tokens or most, most)
        self._refuse_if_long(scaffold.format.at_least(request.messages[place.n :]), max_tokens, longest)
        try:
            scaffold.format.refuse_markup(request.messages, request.tools, place.n)
            if place.n:
                before = self.turns[place.turn].action_A
                prompt_T = scaffold.format.after(request.messages, request.tools, place.n, before)
                known_T = np.concatenate([context_of(np.zeros(0, np.int32), self.turns, place.turn), before])
                context_T = np.concatenate([known_T, prompt_T])
            else:
                context_T = prompt_T = scaffold.format.prompt(request.messages, request.tools)
        except Unrenderable as error:
            raise bad(str(error), "messages") from error
        if request.tools and not scaffold.shows_tools and scaffold.say_once("tools"):
            log.warning("the model's chat template shows no tools: an agent's never reach the model")
        self._refuse_if_long(len(context_T), max_tokens, longest)
        return Asked(request, place, prompt_T, context_T, max_tokens)

    async def answer(self, asked: Asked, hear: Callable[[str], None] | None = None) -> Answer:
        """Sample, record, answer. Raises ApiError. A caller that is cancelled gives the request up."""
        work = asyncio.create_task(self._answer(asked, hear))
        self._in_flight[work] = asked
        work.add_done_callback(lambda done: self._in_flight.pop(done, None))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            asked.abandon(UNREAD)
            raise

    def end(self, limit: Outcome) -> None:
        """Answer no more requests: the episode is at a limit. Those in flight go on."""
        self.limit = self.limit or limit
        self.over.set()

    def fail(self, failure: Exception) -> None:
        """Answer no more requests: the episode can't go on here."""
        self.failure = self.failure or failure
        self.over.set()
        self.give_up()

    def give_up(self) -> None:
        """End what is in flight; what was sampled of it is recorded, and masked."""
        for asked in self._in_flight.values():
            asked.abandon(CUT)

    async def drained(self) -> None:
        """Return once nothing is in flight. Nothing new is answered from here on."""
        self.over.set()
        self.give_up()
        if self._in_flight:
            _, late = await asyncio.wait(self._in_flight, timeout=DRAIN_DEADLINE_S)
            for work in late:
                work.cancel()
            if late:
                self.fail(InfrastructureFailure(f"requests given up were not done within {DRAIN_DEADLINE_S:.0f} s"))

    def attribution(self) -> tuple[int, dict[str, int]]:
        """Tokens that can be trained, and the others by the reason for which they are masked."""
        masked: Counter[str] = Counter()
        for turn in self.turns:
            masked[turn.masked] += len(turn.action_A)
        return masked.pop("", 0), dict(masked)

    async def _answer(self, asked: Asked, hear: Callable[[str], None] | None) -> Answer:
        scaffold, request = self._scaffold, asked.request
        reading = Reading(request.stop, request.calls_tools, hear, asked.give_up)
        try:
            sample = await scaffold.engine.sample(asked.context_T, asked.max_tokens, scaffold.temperature, reading)
            async with self._one_at_a_time:
                turn = await self._append(asked, sample)
        except (InfrastructureFailure, StaleEpoch) as failure:
            self.fail(failure)
            raise self._gone(failure) from failure
        except Exception as error:
            self.fail(error)  # a defect of ours: the attempt raises it
            raise self._gone(error) from error
        if turn.masked or turn not in self.turns:
            raise over(self.limit)
        message = scaffold.tool_parser(sample.text, request.tools) if request.calls_tools else None
        message = message or Message("assistant", sample.text)
        self._conversations.remember(request.messages, request.tools, message, turn.index)
        return Answer(turn, message, sample.finish, len(asked.context_T))

    async def _append(self, asked: Asked, sample: Sample) -> Turn:
        now_s = self.active_s()
        turn = Turn(
            index=len(self.turns),
            context_start=len(self.turns),
            action_A=sample.tokens_A,
            logprobs_A=sample.logprobs_A,
            versions=sample.versions,
            observation_O=np.zeros(0, np.int32),
            command=self._scaffold.text_of(sample.tokens_A).strip(),
            seconds=now_s - self._counted_s,
            chain=link(self.turns[-1].chain if self.turns else b"", asked.context_T, sample.tokens_A),
            follows=asked.place.turn,
            prompt_T=asked.prompt_T,
            masked=asked.masked or (CUT if sample.finish == "abort" else ""),
        )
        if not len(turn.action_A):
            return turn  # given up before its first token: there is nothing to record
        extended = await self._journal.append(turn)
        self.turns.append(turn)
        self._counted_s = now_s
        if extended is not None:
            self.timeout_s, self.max_turns = extended
        return turn

    def _refuse_if_over(self) -> None:
        if self.failure is not None:
            raise self._gone(self.failure)
        if not self.over.is_set() and len(self.turns) + len(self._in_flight) >= self.max_turns:
            self.end(Outcome(kind="turn_limit", detail=f"{self.max_turns} turns"))
        if self.over.is_set():
            raise over(self.limit)

    def _refuse_if_long(self, n_tokens: int, max_tokens: int, longest: int) -> None:
        self.overflowed = n_tokens + max_tokens > longest
        if self.overflowed:
            raise bad(
                f"This model's maximum context length is {longest} tokens. However, you requested "
                f"{n_tokens + max_tokens} tokens ({n_tokens} in the messages, {max_tokens} in the completion). "
                "Please reduce the length of the messages or completion.",
                "messages",
                "context_length_exceeded",
            )

    def _gone(self, failure: Exception) -> ApiError:
        log.warning("episode %s: a request is refused: %s", self._episode, failure)
        if isinstance(failure, StaleEpoch):
            return wrong_key()
        why = f"the episode can't go on here: {type(failure).__name__}"
        return ApiError(503, why, "unavailable", kind="server_error")


def over(limit: Outcome | None) -> ApiError:
    """No client repeats a request that was answered with 403."""
    why = f"{limit.kind}: {limit.detail}" if limit else "it has ended"
    return ApiError(403, f"the episode is over ({why}); end the agent", "episode_over", kind="permission_error")


def wrong_key() -> ApiError:
    """Of no episode that runs here."""
    return ApiError(401, "Incorrect API key provided: it is of no episode that runs here", "invalid_api_key")
