"""A checkpoint under evaluation: the agent and the engine of training, one episode a file (klong_rl.distillation).

The file holds what training streams to the buffer: each action before its command runs, each turn before the next
begins, tokens and all. So who goes on samples in exactly the context that was.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.agent import Agent
from actors.engine import Engine
from klong_rl.blocking import in_thread
from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig, EngineConfig, WindowConfig
from klong_rl.distillation.journal import Ended, Intended, Journal, Turned
from klong_rl.judging.protocols import Usage
from klong_rl.scaffold import SUBMIT
from klong_rl.types import EpisodeSpec, Turn
from klong_rl.windows import ContextRule
from klong_rl.wire import decode, encode


class CheckpointPolicy:
    """As klong_rl.distillation.attempts.Policy. Start with `await CheckpointPolicy.start(...)`."""

    def __init__(self, name: str, agent: Agent, engine: Engine) -> None:
        self.name = name
        self._agent, self._engine = agent, engine

    @classmethod
    async def start(
        cls, name: str, folder: Path, agent: AgentConfig, window: WindowConfig, engine: EngineConfig, seed: int
    ) -> CheckpointPolicy:
        """With the weights of the Hugging Face folder."""
        chat = ChatFormat(folder)
        started = await Engine.start(engine, str(folder), chat.end_id, 0, seed)
        return cls(name, Agent(agent, ContextRule.of(window, agent), chat, started), started)

    def close(self) -> None:
        """Nothing can be asked of it any more."""
        self._engine.shutdown()
        del self._agent, self._engine
        gc.collect()  # vLLM's object, which is in a cycle, complains when it goes with the interpreter

    async def run(self, spec: EpisodeSpec, journal: Journal, sandbox: Any) -> None:
        prefix_P = self._agent.prefix(spec)
        turns = [decode(each.turn, Turn) for each in journal.turned]
        begun = journal.intended[len(turns) :]
        intended = decode(begun[0].turn, Turn) if begun else None
        kept = _TurnsInFile(journal, self._agent.chat, prefix_P, turns)
        outcome = await self._agent.run(spec, prefix_P, sandbox, kept, turns, intended)
        await in_thread(journal.add, Ended(kind=outcome.kind, detail=outcome.detail))


class _TurnsInFile:
    """As actors.journal.Journal."""

    def __init__(self, journal: Journal, chat: ChatFormat, prefix_P: np.ndarray, turns: Sequence[Turn]) -> None:
        self._journal, self._chat, self._prefix_tokens = journal, chat, len(prefix_P)
        self._lengths = [turn.n_tokens() for turn in turns]

    async def intend(self, turn: Turn) -> None:
        context = self._prefix_tokens + sum(self._lengths[turn.context_start :])
        event = Intended(
            command=turn.command,
            usage=Usage(requests=1, prompt_tokens=context, completion_tokens=len(turn.action_A)),
            seconds=turn.seconds,
            context_start=turn.context_start,
            turn=encode(turn),
        )
        await in_thread(self._journal.add, event)

    async def append(self, turn: Turn) -> None:
        event = Turned(
            observation=self._chat.text(turn.observation_O),
            exit_code=turn.exit_code,
            seconds=max(0.0, turn.seconds - self._journal.intended[-1].seconds),
            is_end=turn.command == SUBMIT and not len(turn.observation_O),
            turn=encode(turn),
        )
        await in_thread(self._journal.add, event)
        self._lengths.append(turn.n_tokens())
