"""Agents from outside: an episode is a call of the user's program, beside the record of what it asks (docs/agents.md).

    program(episode, sandbox, base_url, key)      in the place of actors.agent's loop
        │ asks ─▶ actors.endpoint ─▶ actors.record ─▶ engine, journal
        │ acts ─▶ GuardedSandbox
        └ returns: submitted        raises: AgentFailure is scored, all else is ours to try again

    a limit ─▶ requests are answered with an error ─▶ `grace_s` to end by itself ─▶ cancelled, CANCEL_DEADLINE_S

A program that doesn't end even then is left alone with a key that opens nothing and a sandbox that isn't its any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from hydra.utils import instantiate
from msgspec.structs import replace

from actors.endpoint import Endpoint
from actors.journal import Journal
from actors.record import Record, Scaffold
from klong_rl.agents import AgentEpisode, EpisodeOver, ProgramFailure, is_resumable
from klong_rl.buffer import StaleEpoch
from klong_rl.config import AgentConfig
from klong_rl.errors import in_short
from klong_rl.failures import AgentFailure, EpisodeFailure, InfrastructureFailure
from klong_rl.types import EpisodeSpec, Outcome, Turn

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOCK_TICK_S = 0.05  # active time may stand still (a publish), so the rest of it is waited for in steps no shorter
CANCEL_DEADLINE_S = 10.0  # for a program to clean up once it is cancelled
LEAST_COMMAND_S = 0.1


class ProgramAgent:
    """In the place of `actors.agent.Agent`: the same questions, answered by a program of the user's."""

    def __init__(self, config: AgentConfig, scaffold: Scaffold, endpoint: Endpoint) -> None:
        self._config = config
        self._scaffold = scaffold
        self._endpoint = endpoint
        self._program = instantiate(config.program, _partial_=True)
        self.resumable = is_resumable(self._program)

    def prefix(self, spec: EpisodeSpec) -> np.ndarray:
        """None: each turn of a program says itself what it was given."""
        return np.zeros(0, np.int32)

    async def run(
        self,
        spec: EpisodeSpec,
        prefix_P: np.ndarray,
        sandbox: Any,
        journal: Journal,
        turns: Sequence[Turn] = (),
        intended: Turn | None = None,
    ) -> Outcome:
        """As `Agent.run`. An intended action is nothing a program leaves: its turns are whole when they are written."""
        record = Record(self._scaffold, spec, journal, turns)
        guarded = GuardedSandbox(sandbox, record)
        key = self._endpoint.open(record)
        try:
            outcome = await self._play(spec, record, guarded, key)
        finally:
            self._endpoint.revoke(key)
            guarded.close()
            await record.drained()
        for failure in (record.failure, guarded.failure):
            if failure is not None:
                raise failure
        attributed, masked = record.attribution()
        return replace(outcome, attributed=attributed, masked=masked)

    async def _play(self, spec: EpisodeSpec, record: Record, guarded: GuardedSandbox, key: str) -> Outcome:
        episode = AgentEpisode(
            id=spec.id,
            task=spec.task.id,
            instruction=spec.task.instruction,
            system=self._config.system,
            timeout_s=record.timeout_s,
            max_turns=record.max_turns,
            context_tokens=self._scaffold.rule.max_tokens,
            n_turns=len(record.turns),
        )
        program = asyncio.ensure_future(self._program(episode, guarded, self._endpoint.url, key))
        try:
            await self._until_over(program, record)
            if not program.done():
                await asyncio.wait([program], timeout=self._config.endpoint.grace_s)
        finally:
            await end(program, spec.id)
        return outcome_of(program, record, guarded)

    async def _until_over(self, program: asyncio.Future, record: Record) -> None:
        """Until the program has ended, or the episode is at a limit or can't go on."""
        over = asyncio.ensure_future(record.over.wait())
        try:
            while not (program.done() or over.done()):
                left_s = record.timeout_s - record.active_s()
                if left_s <= 0:
                    record.end(Outcome(kind="timeout", detail=f"after {len(record.turns)} turns"))
                    record.give_up()
                    return
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait([program, over], timeout=max(CLOCK_TICK_S, left_s), return_when=first)
        finally:
            over.cancel()


async def end(program: asyncio.Future, episode: str) -> None:
    """Cancel a program that hasn't ended, and wait for its cleaning up."""
    if program.done():
        return
    program.cancel()
    await asyncio.wait([program], timeout=CANCEL_DEADLINE_S)
    if not program.done():
        log.warning("the agent program of episode %s was cancelled and goes on; it is left alone", episode)


def outcome_of(program: asyncio.Future, record: Record, guarded: GuardedSandbox) -> Outcome:
    """What an episode amounts to whose program has ended, or was ended. Raises what is no outcome."""
    if guarded.broken:
        return Outcome(kind="broken", detail=guarded.broken)
    if record.limit is not None:
        return record.limit
    if not program.done() or program.cancelled():
        return Outcome(kind="submitted")  # then `record.failure` or `guarded.failure` says why, and is raised
    error = program.exception()
    if isinstance(error, AgentFailure):
        return Outcome(kind="broken", detail=str(error))
    if record.overflowed:
        return Outcome(kind="context_limit", detail=f"after {len(record.turns)} turns")
    if error is None:
        return Outcome(kind="submitted")
    if isinstance(error, EpisodeFailure | StaleEpoch):
        raise error
    raise ProgramFailure(f"the agent program raised {type(error).__name__}: {in_short(error)}") from error


class GuardedSandbox:
    """The sandbox as a program has it: no longer than its episode, and no command beyond the episode's time.

    What fails here is remembered: a program that goes on after it changes nothing about what it was.
    """

    def __init__(self, sandbox: Any, record: Record) -> None:
        self._sandbox = sandbox
        self._record = record
        self._closed = False
        self.failure: InfrastructureFailure | None = None
        self.broken = ""

    async def exec(self, command: str, *, timeout_s: float, **options: Any) -> Any:
        """As `sandboxes.base.Sandbox.exec`. Raises EpisodeOver."""
        left_s = self._record.timeout_s - self._record.active_s()
        limit_s = max(LEAST_COMMAND_S, min(timeout_s, left_s))
        return await self._guard(lambda: self._sandbox.exec(command, timeout_s=limit_s, **options))

    async def write(self, path: str, data: bytes) -> None:
        await self._guard(lambda: self._sandbox.write(path, data))

    async def write_many(self, files: dict[str, bytes]) -> None:
        await self._guard(lambda: self._sandbox.write_many(files))

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        return await self._guard(lambda: self._sandbox.read(path, limit))

    def close(self) -> None:
        """Nothing is done in it any more on behalf of the program."""
        self._closed = True

    async def _guard(self, call: Callable[[], Awaitable[T]]) -> T:
        limit = self._record.limit
        if self._closed or self._record.failure or (limit is not None and limit.kind == "timeout"):
            raise EpisodeOver("the episode is over; end the agent")
        try:
            return await call()
        except InfrastructureFailure as failure:
            self.failure = self.failure or failure
            self._record.fail(failure)
            raise
        except AgentFailure as failure:
            self.broken = self.broken or str(failure)
            self._record.end(Outcome(kind="broken", detail=self.broken))
            raise
