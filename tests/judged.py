"""Finished episodes for tests of rewards: real shells, a grader, and what it keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from klong_rl.config import EndpointConfig, JudgeConfig
from klong_rl.judging.grader import Graded, Grader
from klong_rl.judging.record import Records
from klong_rl.judging.store import Store
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import EpisodeSpec, Limits, Outcome, Task
from sandboxes.process import ProcessSandboxes


def finished(episode: str = "e", group: str = "g", purpose: str = "train", **secret: Any) -> FinishedEpisode:
    task = Task(id="t", family="f", instruction="i", image="none", secret=secret)
    spec = EpisodeSpec(
        id=episode, group=group, group_size=2, stage=1, purpose=purpose, task=task, timeout_s=9, max_turns=9
    )
    return FinishedEpisode(spec, Outcome(kind="submitted"))


def reward(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"klong_rl.rewards.{name}", "_partial_": True, **options}


class Bench:
    """A grader at work on sandboxes under `folder`."""

    def __init__(self, folder: Path, config: JudgeConfig, chosen: dict[str, Any]) -> None:
        self.store = Store(folder)
        self.records = Records(self.store.folder / "records")
        self.grader = Grader(config, chosen, self.store, self.records)
        self.sandboxes = ProcessSandboxes("run", root=str(folder / "sandboxes"), allow_unisolated=True)

    async def grade(self, episode: FinishedEpisode, *commands: str) -> Graded:
        """Grade what `commands` leave of a new sandbox."""
        sandbox = await self.sandboxes.create(episode.spec.id, 1, "none", Limits())
        try:
            for command in commands:
                await sandbox.exec(command, timeout_s=5)

            async def given() -> Any:
                return sandbox

            return await self.grader.grade(episode, 1, given, self._fresh)
        finally:
            await sandbox.close()

    @asynccontextmanager
    async def _fresh(self, image: str) -> AsyncIterator[Any]:
        sandbox = await self.sandboxes.create("fresh", 1, image, Limits())
        try:
            yield sandbox
        finally:
            await sandbox.close()

    def record(self):
        """The only one."""
        ((record, _),), _ = self.records.all()
        return record


@asynccontextmanager
async def bench(folder: Path, chosen: dict[str, Any], url: str = "", **settings: Any) -> AsyncIterator[Bench]:
    endpoint = EndpointConfig(url=url, model="m", requests_per_s=1e4, context_tokens=8192)
    made = Bench(folder, JudgeConfig(endpoint=endpoint, **settings), chosen)
    try:
        yield made
    finally:
        await made.grader.close()
