"""A judge actor: scores finished episodes in the sandboxes they left behind, and closes complete groups.

    sealed ──▶ adopt its sandbox ──▶ reward ──▶ verdict ──▶ remove the sandbox, which no one needs from here on
    group complete ──▶ split into windows, advantages ──▶ windows ready, all at once

A group that waits to be closed goes before an episode that waits to be judged: it unblocks the learner.
A verdict is given once; a judge that dies leaves its episode to the next one (the buffer's visibility timeout).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

from hydra.utils import instantiate

from actors.crew import Crew
from actors.retry import clear, drop, give_back
from actors.settings import ActorSettings
from actors.warned import KeptWarnings
from klong_rl.advantages import advantage_rule
from klong_rl.buffer import Buffer, StaleEpoch, ToJudge, Unknown
from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.groups import windows_of
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import Verdict

log = logging.getLogger(__name__)


class JudgeActor:
    """Started by the driver as an async Ray actor: `await start()`, then `run()` until `stop()`."""

    def __init__(self, settings: ActorSettings) -> None:
        self._settings = settings
        self._config = settings.config
        self._warnings = KeptWarnings()
        self._cleanup = AsyncExitStack()
        self._closing: set[str] = set()
        self._crew = Crew(settings.config.judge.episodes, self._take, self._work)

    async def start(self, owner: str) -> None:
        """Connect, as `owner`, and build the reward that the configuration names."""
        self._owner = owner
        self._reward = instantiate(self._config.reward)
        self._advantages = advantage_rule(self._config.learner)
        self._buffer = await self._cleanup.enter_async_context(await Buffer.connect(self._settings.buffer))
        self._sandboxes = self._settings.make_sandboxes()
        self._cleanup.push_async_callback(self._sandboxes.close)

    async def run(self) -> None:
        """Judge until `stop`."""
        await self._crew.run()

    async def status(self) -> dict[str, Any]:
        """Warnings since the last look."""
        return {"warnings": self._warnings.take()}

    async def stop(self) -> None:
        await self._crew.stop()
        await self._cleanup.aclose()

    async def _take(self) -> str | ToJudge | None:
        group = await self._buffer.next_group_to_close()
        if group is not None and group not in self._closing:
            self._closing.add(group)
            return group
        return await self._buffer.next_to_judge(self._owner)

    async def _work(self, job: str | ToJudge) -> None:
        if isinstance(job, ToJudge):
            await self._judge(job)
            return
        try:
            await self._buffer.close_group(job, windows_of(await self._buffer.group(job), self._advantages))
        except Unknown:
            log.info("group %s was closed by another judge and archived since", job)
        finally:
            self._closing.discard(job)

    async def _judge(self, job: ToJudge) -> None:
        episode, epoch = job.spec.id, job.epoch
        sandboxes, most = self._sandboxes, self._config.agent.max_attempts
        sandbox = None
        try:
            limit_s = self._config.judge.grading_timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    sandbox = await self._sandbox_of(job)
                    verdict = await self._reward(FinishedEpisode(job.spec, job.outcome), sandbox)
            except TimeoutError as error:
                raise InfrastructureFailure(f"grading took over judge.grading_timeout_s={limit_s:g}") from error
            except AgentFailure as failure:
                verdict = Verdict(score=0.0, evidence={"agent_failure": str(failure)})
            await self._buffer.verdict(episode, epoch, verdict)
            await clear(sandboxes, episode, sandbox)
        except (StaleEpoch, Unknown) as stale:  # unknown: judged elsewhere and archived since
            log.warning("episode %s was taken back while it was judged: %s", episode, stale)
        except TaskFailure as failure:
            log.warning("task %s is dropped: %s", job.spec.task.id, failure)
            await drop(self._buffer, sandboxes, episode, epoch, "task: can't be scored")
        except InfrastructureFailure as failure:
            log.warning("episode %s could not be judged: %s", episode, failure)
            await give_back(self._buffer, sandboxes, episode, epoch, "not judged", most)
        finally:
            if sandbox is not None:
                await sandbox.release()

    async def _sandbox_of(self, job: ToJudge) -> Any:
        """The sandbox as the episode left it, or one made of a snapshot that was taken then."""
        sandbox = await self._sandboxes.adopt(job.spec.id)
        if sandbox is None:
            progress = await self._buffer.progress(job.spec.id)
            snapshot = progress.snapshot
            if snapshot is None or snapshot.n_segments < len(progress.segments):
                raise InfrastructureFailure(f"the sandbox of episode {job.spec.id} is gone")
            sandbox = await self._sandboxes.create(job.spec.id, job.epoch, snapshot.image, job.spec.task.limits)
        return sandbox
