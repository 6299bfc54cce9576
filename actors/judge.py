"""A judge actor: scores finished episodes in the sandboxes they left behind, and closes complete groups.

    sealed ──▶ adopt its sandbox ──▶ reward ──▶ verdict ──▶ remove the sandbox, which no one needs from here on
    group complete ──▶ split into windows, advantages ──▶ windows ready, all at once

A group that waits to be closed goes before an episode that waits to be judged: it unblocks the learner.
A verdict is given once; a judge that dies leaves its episode to the next one (the buffer's visibility timeout).
What is judged in vain, since its episode was dropped or taken back meanwhile, is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from actors.crew import Crew
from actors.retry import clear, drop, give_back
from actors.settings import ActorSettings
from actors.warned import KeptWarnings
from klong_rl.beside import beside
from klong_rl.buffer import Buffer, StaleEpoch, ToJudge, Unknown
from klong_rl.buffer.records import Member
from klong_rl.errors import AdvantageError, AlreadyStarted
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.groups import to_windows
from klong_rl.judging.grader import GRADING, Grader
from klong_rl.judging.lane import Urgency
from klong_rl.judging.record import Records
from klong_rl.judging.store import Store
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import Window

log = logging.getLogger(__name__)

LOOK_S = 5.0  # between two looks whether a verdict is still wanted, and how urgent it is by now
UNUSABLE_GROUPS = 3  # in a row, on which the advantage rule fails: the rule is at fault, not the groups
VISIBLE_SLACK_S = 300.0  # beyond the deadlines of a grading: making its sandbox, sending its verdict


class JudgeActor:
    """Started by the driver as an async Ray actor: `await start()`, then `run()` until `stop()`."""

    def __init__(self, settings: ActorSettings) -> None:
        self._settings = settings
        self._config = settings.config
        self._owner = ""
        self._warnings = KeptWarnings()
        self._cleanup = AsyncExitStack()
        self._closing: set[str] = set()
        self._unusable = 0  # groups in a row
        self._crew = Crew(settings.config.judge.episodes, self._take, self._work)

    async def start(self, owner: str, share: float) -> None:
        """Connect, as `owner`, with its `share` of the judge model's bounds, and build the reward."""
        if self._owner:
            raise AlreadyStarted(f"this process is {self._owner}")
        self._owner = owner
        self._to_windows = to_windows(self._config)
        judge, store = self._config.judge, Store(self._settings.run_dir)
        self._grader = Grader(judge, self._config.reward, store, Records(store.folder / "records"), share)
        self._cleanup.push_async_callback(self._grader.close)
        self._buffer = await self._cleanup.enter_async_context(await Buffer.connect(self._settings.buffer))
        self._sandboxes = self._settings.make_sandboxes()
        self._cleanup.push_async_callback(self._sandboxes.close)

    async def run(self) -> None:
        """Judge until `stop`."""
        await self._crew.run()

    async def status(self) -> dict[str, Any]:
        """Sandboxes, and warnings since the last look."""
        return {"sandboxes": self._sandboxes.census(), "warnings": self._warnings.take()}

    async def share(self, share: float) -> None:
        """From here on its part of the judge model's bounds, which are the whole run's."""
        self._grader.share(share)

    async def stop(self) -> None:
        await self._crew.stop()
        await self._cleanup.aclose()

    async def _take(self) -> str | ToJudge | None:
        group = await self._buffer.next_group_to_close()
        if group is not None and group not in self._closing:
            self._closing.add(group)
            return group
        judge = self._config.judge
        visible_s = judge.grading_timeout_s + judge.wait_s + VISIBLE_SLACK_S
        return await self._buffer.next_to_judge(self._owner, visible_s)

    async def _work(self, job: str | ToJudge) -> None:
        if isinstance(job, ToJudge):
            await self._judge(job)
            return
        try:
            members, came_in = await self._buffer.group(job), await self._buffer.came_in(job)
            await self._buffer.close_group(job, self._windows(job, members, came_in))
        except Unknown:
            log.info("group %s was closed by another judge and archived since", job)
        finally:
            self._closing.discard(job)

    def _windows(self, group: str, members: Sequence[Member], came_in: Mapping[str, float]) -> list[Window]:
        """What is trained of a group: nothing, where the run's own advantage rule fails on it, or it would hold up the
        run, at each restart anew. But a rule that fails on one group after the other is to be mended: AdvantageError,
        and the last of them waits for that.
        """
        try:
            windows = self._to_windows(members, came_in=came_in)
        except AdvantageError as error:
            self._unusable += 1
            if self._unusable >= UNUSABLE_GROUPS:
                raise
            log.warning("group %s is not trained: %s", group, error)
            return []
        self._unusable = 0
        return windows

    async def _judge(self, job: ToJudge) -> None:
        episode, epoch = job.spec.id, job.epoch
        sandboxes, most = self._sandboxes, self._config.agent.max_attempts
        sandbox = None

        async def adopt() -> Any:
            nonlocal sandbox
            sandbox = await self._sandbox_of(job)
            return sandbox

        try:
            await self._look(job)
            async with beside(self._follow(job)):
                finished = FinishedEpisode(job.spec, job.outcome)
                graded = await self._grader.grade(finished, epoch, adopt, lambda image: self._fresh(job, image))
            await self._buffer.verdict(episode, epoch, graded.verdict)
            await clear(sandboxes, episode, sandbox, keep=graded.kept_snapshot)
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

    async def _follow(self, job: ToJudge) -> None:
        """As long as it is judged: raises StaleEpoch or Unknown, and so ends the judging, when that is in vain."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look(job)

    async def _look(self, job: ToJudge) -> None:
        view = await self._buffer.episode(job.spec.id)
        if (view.state, view.epoch) != ("sealed", job.epoch):
            raise StaleEpoch(job.spec.id, job.epoch, view.epoch, view.state)
        group = await self._buffer.group_progress(view.group)
        self._grader.rank(job.spec.group, Urgency(job.spec.purpose != "eval", group.n_open > 0, group.rank))

    @asynccontextmanager
    async def _fresh(self, job: ToJudge, image: str) -> AsyncIterator[Any]:
        """A sandbox of a snapshot, beside the episode's own; what a judge that died left of it goes first."""
        name = job.spec.id + GRADING
        await clear(self._sandboxes, name)
        sandbox = await self._sandboxes.create(name, job.epoch, image, job.spec.task.limits)
        try:
            yield sandbox
        finally:
            await sandbox.close()

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
