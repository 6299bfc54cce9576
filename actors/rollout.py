"""A rollout actor: one vLLM engine, many sandboxes, many episodes at once.

    claim ──▶ sandbox ──▶ agent: turn ─append▶ turn ─append▶ ... ──▶ seal      the judge takes the sandbox from there
      │                     │
      │                     └ infrastructure failure: requeue (dropped after `agent.max_attempts`)
      └ nothing queued: look again

Waits: for a claim (an empty queue is normal, looked at each IDLE_S), for the sandbox and the engine (deadlines of their
own). Whatever else goes wrong ends the actor, and Ray tells the driver.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import Any

from actors.agent import Agent
from actors.crew import Crew
from actors.engine import Engine
from actors.settings import ActorSettings
from actors.warned import KeptWarnings
from klong_rl.buffer import Buffer, Claim, StaleEpoch
from klong_rl.chat import ChatFormat
from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.types import Outcome, Segment, Turn
from klong_rl.windows import ContextRule

log = logging.getLogger(__name__)


class RolloutActor:
    """Started by the driver as an async Ray actor: `await start()`, then `run()` until `stop()`."""

    def __init__(self, settings: ActorSettings, name: str) -> None:
        self._settings = settings
        self._config = settings.config
        self._name = name
        self._warnings = KeptWarnings()
        self._cleanup = AsyncExitStack()
        self._crew = Crew(settings.config.actors.episodes, self._claim, self._attempt)

    async def start(self, version: int) -> None:
        """Bring up the engine with the weights of `settings.model` as policy `version`, and connect."""
        config = self._config
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        chat = ChatFormat(self._settings.model)
        self._engine = await Engine.start(config.engine, str(self._settings.model), chat.end_id, version, config.seed)
        self._cleanup.callback(self._engine.shutdown)
        self._buffer = await self._cleanup.enter_async_context(await Buffer.connect(self._settings.buffer))
        self._sandboxes = self._settings.make_sandboxes()
        self._cleanup.push_async_callback(self._sandboxes.close)
        rule = ContextRule(config.window.max_tokens, config.window.overlap_tokens, config.agent.action_tokens)
        self._agent = Agent(config.agent, rule, chat, self._engine)

    async def run(self) -> None:
        """Run episodes until `stop`."""
        await self._crew.run()

    async def publish(self, path: str, version: int) -> float:
        """New weights for the engine; seconds it was paused. Episodes under way go on."""
        return await self._engine.publish(path, version)

    async def logprobs(self, tokens_T):
        """The engine's log-probs of a token sequence, float32 [T-1]: for checks against the learner."""
        return await self._engine.logprobs(tokens_T)

    async def status(self) -> dict[str, Any]:
        """Episodes under way, tokens sampled so far, warnings since the last look."""
        return {
            "episodes": self._crew.busy,
            "sampled_tokens": self._engine.sampled_tokens,
            "warnings": self._warnings.take(),
        }

    async def stop(self) -> None:
        """Give running episodes back, remove their sandboxes, end the engine."""
        await self._crew.stop()
        await self._cleanup.aclose()

    async def _claim(self) -> Claim | None:
        return await self._buffer.claim(self._name)

    async def _attempt(self, claim: Claim) -> None:
        """One attempt at an episode, from claim to seal, requeue or drop."""
        episode, epoch = claim.spec.id, claim.epoch
        sandbox = None
        try:
            async with asyncio.timeout(self._config.sandbox.setup_timeout_s) as setup:
                sandbox = await self._sandboxes.create(episode, epoch, claim.spec.task.image, claim.spec.task.limits)
                await sandbox.write_many(claim.spec.task.files)
            outcome = await self._act(claim, sandbox)
            await self._buffer.seal(episode, epoch, outcome)
            await sandbox.release()
            sandbox = None
        except StaleEpoch as stale:
            log.warning("episode %s goes on elsewhere: %s", episode, stale)
        except TaskFailure as failure:
            log.warning("task %s is dropped: %s", claim.spec.task.id, failure)
            await self._buffer.drop(episode, f"task: {type(failure).__name__}", epoch)
        except (InfrastructureFailure, TimeoutError) as failure:
            what = f"no sandbox in {self._config.sandbox.setup_timeout_s:g} s" if setup.expired() else failure
            log.warning("episode %s, attempt %d: %s", episode, epoch, what)
            await self._give_back(episode, epoch, type(failure).__name__)
        except asyncio.CancelledError:
            await self._buffer.requeue(episode, epoch, "actor stopped")
            raise
        finally:
            if sandbox is not None:
                await sandbox.close()

    async def _act(self, claim: Claim, sandbox) -> Outcome:
        """Run the agent, each turn a segment in the buffer before the next one begins."""
        prefix_P = self._agent.prefix(claim.spec)

        async def stream(turn: Turn) -> None:
            segment = Segment(
                episode=claim.spec.id,
                epoch=claim.epoch,
                seq=turn.index,
                turns=(turn,),
                prefix_P=prefix_P if turn.index == 0 else None,
            )
            await self._buffer.append(claim.spec.id, claim.epoch, segment)

        try:
            return await self._agent.run(claim.spec, prefix_P, sandbox, stream)
        except AgentFailure as failure:
            return Outcome(kind="broken", detail=str(failure))

    async def _give_back(self, episode: str, epoch: int, reason: str) -> None:
        failures = await self._buffer.requeue(episode, epoch, reason)
        if failures >= self._config.agent.max_attempts:
            await self._buffer.drop(episode, f"gave up after {failures} attempts: {reason}")
