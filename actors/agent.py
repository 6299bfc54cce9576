"""The agent: one shell command a turn in the model's own chat format, until it submits or is cut.

    context = prefix + the turns that the context rule keeps
    action  = sample(context)              tokens, log-probs, versions: kept as they are
    intend(turn)                           in the journal before the command runs
    observation = the command's output     tokens, made once
    append(turn)                           in the journal before the next turn begins

An episode that another process began goes on in the same way: its turns so far are the start of the loop.
Time is active time: what the engine spends paused for new weights isn't the agent's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from actors.engine import Engine, Sample
from actors.journal import Journal
from klong_rl.branches import joined
from klong_rl.chain import link
from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig
from klong_rl.failures import AgentFailure
from klong_rl.observation import observation_text
from klong_rl.scaffold import SUBMIT, reading, refusal
from klong_rl.types import EpisodeSpec, Outcome, Turn
from klong_rl.windows import ContextOverflow, ContextRule, context_start

CLOCK_TICK_S = 0.01  # active time may stand still (a publish), so the rest of it is waited for in steps no shorter


class Agent:
    """The scaffold around one policy; stateless between episodes, so one serves many at once."""

    resumable = True  # by another process: all that it knows is in its turns

    def __init__(self, config: AgentConfig, rule: ContextRule, chat: ChatFormat, engine: Engine) -> None:
        self.config = config
        self.rule = rule
        self.chat = chat
        self.engine = engine

    def prefix(self, spec: EpisodeSpec) -> np.ndarray:
        """The pinned prefix of an episode, int32 [P]."""
        return self.chat.prefix(self.config.system, spec.task.instruction)

    async def run(
        self,
        spec: EpisodeSpec,
        prefix_P: np.ndarray,
        sandbox: Any,
        journal: Journal,
        turns: Sequence[Turn] = (),
        intended: Turn | None = None,
    ) -> Outcome:
        """Act until the episode ends, from `turns` and the action that was `intended` next; all is in `journal` then.

        Raises EngineFailure, InfrastructureFailure: then there is no outcome, and the episode goes on elsewhere.
        """
        return await _Attempt(self, spec, prefix_P, sandbox, journal, turns).run(intended)


class _Attempt:
    """One holder's part of one episode."""

    def __init__(
        self,
        agent: Agent,
        spec: EpisodeSpec,
        prefix_P: np.ndarray,
        sandbox: Any,
        journal: Journal,
        turns: Sequence[Turn],
    ) -> None:
        self._agent = agent
        self._timeout_s, self._max_turns = spec.timeout_s, spec.max_turns
        self._reading = reading(spec.task)
        self._prefix_P = prefix_P
        self._sandbox = sandbox
        self._journal = journal
        self._turns = list(turns)
        self._active_s = sum(turn.seconds for turn in turns)

    async def run(self, intended: Turn | None) -> Outcome:
        if intended is not None:
            await self._append(self._interrupted(intended))
        while (outcome := self._ended()) is None:
            if (outcome := await self._turn()) is not None:
                break
        return outcome

    def _ended(self) -> Outcome | None:
        """The outcome that the turns so far amount to, if any."""
        if self._turns and self._turns[-1].command == SUBMIT and not len(self._turns[-1].observation_O):
            return Outcome(kind="submitted")
        if self._turns and self._active_s >= self._timeout_s:
            return Outcome(kind="timeout", detail=f"in the command of turn {self._turns[-1].index}")
        if len(self._turns) >= self._max_turns:
            return Outcome(kind="turn_limit", detail=f"{self._max_turns} turns")
        return None

    async def _turn(self) -> Outcome | None:
        """Sample and act once; the outcome if the episode ends before the turn does."""
        turns, start = self._turns, self._turns[-1].context_start if self._turns else 0
        try:
            start = context_start([turn.n_tokens() for turn in turns], start, len(self._prefix_P), self._agent.rule)
        except ContextOverflow as overflow:
            return Outcome(kind="context_limit", detail=str(overflow))
        clock = ActiveClock(self._agent.engine)
        context_T = joined(self._prefix_P, turns[start:])
        sample = await self._sample(context_T, clock)
        if sample is None:
            return Outcome(kind="timeout", detail=f"while sampling turn {len(turns)}")
        turn = Turn(
            index=len(turns),
            context_start=start,
            action_A=sample.tokens_A,
            logprobs_A=sample.logprobs_A,
            versions=sample.versions,
            observation_O=np.zeros(0, np.int32),
            command=self._agent.chat.text(sample.tokens_A).strip(),
            seconds=clock.seconds(),
            chain=link(turns[-1].chain if turns else b"", context_T, sample.tokens_A),
        )
        await self._journal.intend(turn)
        try:
            await self._append(await self._act(turn, clock))
        except AgentFailure as failure:
            await self._append(replace(turn, seconds=clock.seconds()))
            return Outcome(kind="broken", detail=str(failure))
        return None

    async def _append(self, turn: Turn) -> None:
        extended = await self._journal.append(turn)
        self._turns.append(turn)
        self._active_s += turn.seconds
        if extended is not None:
            self._timeout_s, self._max_turns = extended

    async def _sample(self, context_T: np.ndarray, clock: ActiveClock) -> Sample | None:
        """One action, or None if the active time runs out first (the request is then aborted)."""
        agent, left_s = self._agent, self._timeout_s - self._active_s
        request = asyncio.ensure_future(
            agent.engine.sample(context_T, agent.rule.action_tokens, agent.config.temperature)
        )
        try:
            while not request.done() and clock.seconds() < left_s:
                await asyncio.wait([request], timeout=max(CLOCK_TICK_S, left_s - clock.seconds()))
            return request.result() if request.done() else None
        finally:
            request.cancel()

    async def _act(self, turn: Turn, clock: ActiveClock) -> Turn:
        """The turn with what its command printed."""
        if turn.command == SUBMIT:
            return self._submitted(replace(turn, seconds=clock.seconds()))
        left_s = self._timeout_s - self._active_s - clock.seconds()
        limit_s = max(0.1, min(self._agent.config.command_timeout_s, left_s))
        result = await self._sandbox.exec(turn.command, timeout_s=limit_s)
        timed_out_s = limit_s if result.timed_out else None
        text = observation_text(result.output, result.exit_code, timed_out_s, result.truncated, result.interrupted)
        return replace(
            turn,
            observation_O=self._observation(turn, text),
            exit_code=result.exit_code,
            interrupted=result.interrupted,
            seconds=turn.seconds + result.seconds,  # without the wait for a daemon that was away
        )

    def _interrupted(self, turn: Turn) -> Turn:
        """The turn of a command of which nobody knows how far it came; it is never run again."""
        if turn.command == SUBMIT:
            return self._submitted(turn)
        text = observation_text("", None, interrupted=True)
        return replace(turn, observation_O=self._observation(turn, text), interrupted=True)

    def _submitted(self, turn: Turn) -> Turn:
        """The turn as it is if `submit` is taken, with an observation if it isn't yet."""
        shown = (self._agent.chat.text(each.observation_O) for each in self._turns)
        used = (self._active_s + turn.seconds) / self._timeout_s
        why = refusal(self._agent.config.rules, self._reading, shown, used)
        return replace(turn, observation_O=self._observation(turn, why)) if why else turn

    def _observation(self, turn: Turn, text: str) -> np.ndarray:
        return self._agent.chat.observation(text, turn.action_A, self._agent.config.observation_tokens)


class ActiveClock:
    """Seconds since it was made, less those the engine was paused."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._began = time.monotonic() - engine.paused_s()

    def seconds(self) -> float:
        return time.monotonic() - self._engine.paused_s() - self._began
