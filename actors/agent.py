"""The agent: one shell command a turn in the model's own chat format, until it submits or is cut.

    context = prefix + the turns that the context rule keeps
    action  = sample(context)              tokens, log-probs, versions: kept as they are
    observation = the command's output     tokens, made once
    stream(turn)                           to the buffer, before the next turn begins

Time is active time: what the engine spends paused for new weights isn't the agent's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from actors.engine import Engine, Sample
from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig
from klong_rl.observation import observation_text
from klong_rl.types import EpisodeSpec, Outcome, Turn
from klong_rl.windows import ContextOverflow, ContextRule, context_start

SUBMIT = "submit"
CLOCK_TICK_S = 0.01  # active time may stand still (a publish), so the rest of it is waited for in steps no shorter
Stream = Callable[[Turn], Awaitable[None]]


class Agent:
    """The scaffold around one policy; stateless between episodes, so one serves many at once."""

    def __init__(self, config: AgentConfig, rule: ContextRule, chat: ChatFormat, engine: Engine) -> None:
        self.config = config
        self.rule = rule
        self.chat = chat
        self.engine = engine

    def prefix(self, spec: EpisodeSpec) -> np.ndarray:
        """The pinned prefix of an episode, int32 [P]."""
        return self.chat.prefix(self.config.system, spec.task.instruction)

    async def run(self, spec: EpisodeSpec, prefix_P: np.ndarray, sandbox: Any, stream: Stream) -> Outcome:
        """Act until the episode ends; every finished turn has been streamed when this returns.

        Raises EngineFailure, InfrastructureFailure: then there is no outcome, and the episode is tried again.
        """
        turns: list[Turn] = []
        start, active_s = 0, 0.0
        while len(turns) < spec.max_turns:
            try:
                start = context_start([turn.n_tokens() for turn in turns], start, len(prefix_P), self.rule)
            except ContextOverflow as overflow:
                return Outcome(kind="context_limit", detail=str(overflow))
            began = ActiveClock(self.engine)
            sample = await self._sample_within(_context(prefix_P, turns[start:]), spec.timeout_s - active_s, began)
            if sample is None:
                return Outcome(kind="timeout", detail=f"while sampling turn {len(turns)}")
            turn, submitted = await self._act(sample, len(turns), start, sandbox, spec.timeout_s - active_s, began)
            active_s += turn.seconds
            turns.append(turn)
            await stream(turn)
            if submitted:
                return Outcome(kind="submitted")
            if active_s >= spec.timeout_s:
                return Outcome(kind="timeout", detail=f"in the command of turn {turn.index}")
        return Outcome(kind="turn_limit", detail=f"{spec.max_turns} turns")

    async def _sample_within(self, context_T: np.ndarray, left_s: float, clock: ActiveClock) -> Sample | None:
        """One action, or None if the active time runs out first (the request is then aborted)."""
        request = asyncio.ensure_future(
            self.engine.sample(context_T, self.rule.action_tokens, self.config.temperature)
        )
        try:
            while not request.done() and clock.seconds() < left_s:
                await asyncio.wait([request], timeout=max(CLOCK_TICK_S, left_s - clock.seconds()))
            return request.result() if request.done() else None
        finally:
            request.cancel()

    async def _act(
        self, sample: Sample, index: int, start: int, sandbox: Any, left_s: float, clock: ActiveClock
    ) -> tuple[Turn, bool]:
        """Run the sampled command; the finished turn, and whether it was `submit`."""
        command = self.chat.text(sample.tokens_A).strip()
        observation_O, exit_code = np.zeros(0, np.int32), None
        if command != SUBMIT:
            limit_s = max(0.1, min(self.config.command_timeout_s, left_s - clock.seconds()))
            result = await sandbox.exec(command, timeout_s=limit_s)
            timed_out_s = limit_s if result.timed_out else None
            text = observation_text(result.output, result.exit_code, timed_out_s, result.truncated, result.interrupted)
            observation_O = self.chat.observation(text, sample.tokens_A, self.config.observation_tokens)
            exit_code = result.exit_code
        turn = Turn(
            index=index,
            context_start=start,
            action_A=sample.tokens_A,
            logprobs_A=sample.logprobs_A,
            versions=sample.versions,
            observation_O=observation_O,
            command=command,
            exit_code=exit_code,
            seconds=clock.seconds(),
        )
        return turn, command == SUBMIT


class ActiveClock:
    """Seconds since it was made, less those the engine was paused."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._began = time.monotonic() - engine.paused_s()

    def seconds(self) -> float:
        return time.monotonic() - self._engine.paused_s() - self._began


def _context(prefix_P: np.ndarray, turns: list[Turn]) -> np.ndarray:
    pieces = [prefix_P]
    for turn in turns:
        pieces += [turn.action_A, turn.observation_O]
    return np.concatenate(pieces)
