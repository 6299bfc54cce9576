"""A rollout actor: one vLLM engine, many sandboxes, many episodes at once.

    claim ──▶ take over ──▶ agent: turn ─append▶ turn ─append▶ ... ──▶ seal    the judge takes the sandbox from there
      │        │ (its own      │
      │        │  sandbox, a   └ infrastructure failure: requeue (dropped after `agent.max_attempts`), rest a while
      │        │  snapshot, or
      │        └  a new one)
      └ nothing queued: look again

A sandbox is removed when its episode is final, and not before: whoever claims the episode next goes on in it. Only a
stop takes sandboxes away, and keeps a snapshot of each.

Waits: for a claim (an empty queue is normal, looked at each IDLE_S), for the sandbox and the engine (deadlines of their
own). Whatever else goes wrong ends `run`, and the driver has this actor made again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import Any

from actors.agent import Agent
from actors.crew import Crew
from actors.endpoint import Endpoint
from actors.engine import Engine, EngineBroken
from actors.journal import BufferJournal
from actors.program import ProgramAgent
from actors.record import Scaffold
from actors.retry import clear, drop, give_back
from actors.settings import ActorSettings
from actors.snapshots import park
from actors.takeover import Begun, take_over
from actors.tool_calls import tool_parser
from actors.warned import KeptWarnings
from klong_rl.buffer import Buffer, Claim, Full, StaleEpoch
from klong_rl.chat import ChatFormat
from klong_rl.chat_messages import MessageFormat
from klong_rl.errors import AlreadyStarted
from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.pacing import EngineLook, first_slots
from klong_rl.seldom import Seldom
from klong_rl.windows import ContextRule

log = logging.getLogger(__name__)

SEEDS_APART = 1_000_003  # between the engines of a run; odd, so that no two are the same modulo 2^32
SEATS = 4096  # more engines than a run ever has, those that were let go of included
REST_S, REST_AT_MOST_S = 0.5, 30.0  # of a slot after a failure of ours, doubled each time in a row


class RolloutActor:
    """Started by the driver as an async Ray actor: `await start()`, `publish`, then `run()` until `stop()`."""

    def __init__(self, settings: ActorSettings, index: int) -> None:
        self._settings = settings
        self._config = settings.config
        self._index = index
        self._owner = ""
        self._failures_in_a_row = 0
        self._stopping = False
        self._warnings = KeptWarnings()
        self._full = Seldom()
        self._cleanup = AsyncExitStack()
        self._crew = Crew(settings.config.actors.min_episodes, self._claim, self._attempt)

    async def start(self, owner: str, life: int) -> None:
        """Bring up the engine and connect, as `owner`, in the `life`-th process of this actor (from 1).

        The engine has the weights of `settings.model` as version 0, to be replaced by a publish before it samples.
        """
        if self._owner:
            raise AlreadyStarted(f"this process is {self._owner}")
        self._owner = owner
        config = self._config
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        chat = ChatFormat(self._settings.model)
        # Each engine and each of its lives its own seed: else members of a group would be copies of each other.
        seed = (config.seed + SEEDS_APART * (self._index + SEATS * (life - 1))) % 2**32
        self._engine = await Engine.start(config.engine, str(self._settings.model), chat.end_id, 0, seed)
        self._cleanup.callback(self._engine.shutdown)
        self._crew.allow(first_slots(config.actors.min_episodes, config.actors.episodes, self._engine.load.fits))
        self._buffer = await self._cleanup.enter_async_context(await Buffer.connect(self._settings.buffer))
        self._sandboxes = self._settings.make_sandboxes()
        self._cleanup.push_async_callback(self._sandboxes.close)
        rule = ContextRule.of(config.window, config.agent)
        if config.agent.program:
            self._agent = await self._program_agent(rule, chat)
        else:
            self._agent = Agent(config.agent, rule, chat, self._engine)

    async def _program_agent(self, rule: ContextRule, chat: ChatFormat) -> ProgramAgent:
        """An agent from outside, and the endpoint that it asks."""
        config = self._config.agent
        endpoint = Endpoint(config.endpoint, config.temperature, lambda token: chat.tokenizer.decode([token]))
        await endpoint.start()
        self._cleanup.push_async_callback(endpoint.close)
        parser = tool_parser(config.endpoint.tool_parser, chat.tokenizer)
        scaffold = Scaffold(self._engine, MessageFormat(chat), rule, config.temperature, chat.text, parser)
        return ProgramAgent(config, scaffold, endpoint)

    async def run(self) -> None:
        """Run episodes until `stop`."""
        await self._crew.run()

    async def publish(self, weights: dict[str, Any], version: int) -> dict[str, float]:
        """New weights, as the learner published them; seconds of each phase. Episodes under way go on."""
        return await self._engine.publish(weights, version)

    async def logprobs(self, tokens_T):
        """The engine's log-probs of a token sequence, float32 [T-1]: for checks against the learner."""
        return await self._engine.logprobs(tokens_T)

    async def allow(self, episodes: int) -> None:
        """From here on run so many at once; those under way go on."""
        self._crew.allow(episodes)

    async def status(self) -> dict[str, Any]:
        """Episodes under way, tokens sampled so far, the engine's load, sandboxes, warnings since the last look."""
        load = self._engine.load
        return {
            "episodes": self._crew.busy,
            "sampled_tokens": self._engine.sampled_tokens,
            "load": EngineLook(
                actor=self._owner,
                episodes=self._crew.busy,
                ended=self._crew.ended,
                fits=load.fits,
                waiting=load.waiting,
                kv_use=load.kv_use,
                paused_s=self._engine.paused_s(),
                sampled=self._engine.sampled_tokens,
            ),
            "sandboxes": self._sandboxes.census(),
            "warnings": self._warnings.take(),
        }

    async def stop(self) -> None:
        """Keep a snapshot of each running episode, give them all back, end the engine."""
        self._stopping = True
        await self._crew.stop()
        await self._buffer.abandon(self._owner, "its actor was stopped")
        await self._cleanup.aclose()

    async def _claim(self) -> Claim | None:
        try:
            return await self._buffer.claim(self._owner)
        except Full as full:
            if self._full.due():
                log.warning("no new episodes for now: %s", full)
            return None

    async def _attempt(self, claim: Claim) -> None:
        """One attempt at an episode, from claim to seal, requeue or drop."""
        episode, epoch = claim.spec.id, claim.epoch
        try:
            await self._play(claim)
            self._failures_in_a_row = 0
        except StaleEpoch as stale:
            log.warning("episode %s goes on elsewhere: %s", episode, stale)
        except TaskFailure as failure:
            log.warning("task %s is dropped: %s", claim.spec.task.id, failure)
            await drop(self._buffer, self._sandboxes, episode, epoch, "task: can't be set up")
        except InfrastructureFailure as failure:
            log.warning("episode %s, attempt %d: %s", episode, epoch, failure)
            reason, most = type(failure).__name__, self._config.agent.max_attempts
            await give_back(self._buffer, self._sandboxes, episode, epoch, reason, most)
            if isinstance(failure, EngineBroken):
                raise
            # The slot rests, longer each time in a row, so that what is broken doesn't eat up the queue.
            self._failures_in_a_row += 1
            await asyncio.sleep(min(REST_AT_MOST_S, REST_S * 2**self._failures_in_a_row))

    async def _play(self, claim: Claim) -> None:
        """Take over, act, seal; the sandbox is left for whoever has the episode next."""
        begun = await self._begin(claim)
        episode, sandbox = claim.spec.id, begun.sandbox
        prefix_P = self._agent.prefix(claim.spec)
        every_s = self._config.sandbox.snapshot_every_s if self._agent.resumable else 0.0
        journal = BufferJournal(self._buffer, self._sandboxes, claim, prefix_P, sandbox, begun.turns, every_s)
        try:
            outcome = begun.outcome or await self._agent.run(
                claim.spec, prefix_P, sandbox, journal, begun.turns, begun.intended
            )
            await self._buffer.seal(episode, claim.epoch, outcome)
        except StaleEpoch as stale:
            if stale.state == "dropped":
                await clear(self._sandboxes, episode, sandbox)
            raise
        except asyncio.CancelledError:
            if self._stopping and self._agent.resumable:
                await park(self._buffer, self._sandboxes, episode, claim.epoch, journal.n_segments)
            raise
        finally:
            await sandbox.release()

    async def _begin(self, claim: Claim) -> Begun:
        """The sandbox of the episode and its turns so far, within `sandbox.setup_timeout_s` once its image is there."""
        limit_s = self._config.sandbox.setup_timeout_s
        try:
            await self._sandboxes.prepare(claim.spec.task.image)
        except InfrastructureFailure as failure:
            log.warning("%s has a sandbox already, or gets none: %s", claim.spec.id, failure)  # which says so then
        try:
            async with asyncio.timeout(limit_s):
                return await take_over(self._buffer, self._sandboxes, claim, self._agent.resumable)
        except TimeoutError as error:
            raise InfrastructureFailure(f"no sandbox within sandbox.setup_timeout_s={limit_s:g}") from error
        except AgentFailure as failure:
            # No agent has acted in a sandbox that is being made.
            raise InfrastructureFailure(f"the sandbox broke as it was set up: {failure}") from failure
