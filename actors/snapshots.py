"""Snapshots of an episode's sandbox: the files to go on from where the sandbox itself is gone."""

from __future__ import annotations

import logging
from typing import Any

from klong_rl.buffer import Buffer, StaleEpoch
from klong_rl.failures import AgentFailure, InfrastructureFailure

log = logging.getLogger(__name__)


async def take(buffer: Buffer, sandboxes: Any, sandbox: Any, episode: str, epoch: int, n_segments: int) -> None:
    """Keep `sandbox` as it is after so many segments, and no older snapshot.

    Raises InfrastructureFailure; StaleEpoch for who no longer holds the episode.
    """
    image = await sandbox.snapshot(f"{epoch}-{n_segments}")
    await buffer.keep_snapshot(episode, epoch, n_segments, image)
    await sandboxes.forget_snapshots(episode, keep=image)


async def make_room(buffer: Buffer, sandboxes: Any, sandbox: Any) -> None:
    """Before a snapshot that an episode can do without: InfrastructureFailure where the disk has no room for it."""

    async def needed() -> set[str]:
        return {episode.snapshot for episode in await buffer.in_progress()}

    await sandboxes.make_room(sandbox, needed)


async def park(buffer: Buffer, sandboxes: Any, episode: str, epoch: int, n_segments: int) -> None:
    """Keep the files in a snapshot and remove the sandbox, whose command, if one runs, is ended."""
    try:
        sandbox = await sandboxes.adopt(episode)
        if sandbox is not None:
            await take(buffer, sandboxes, sandbox, episode, epoch, n_segments)
            await sandbox.close()
    except (InfrastructureFailure, AgentFailure, StaleEpoch) as failure:
        log.warning("episode %s is stopped without a new snapshot: %s", episode, failure)


async def park_sealed(buffer: Buffer, sandboxes: Any) -> None:
    """`park` for what waits to be judged, when there is no judge any more."""
    for waiting in await buffer.in_progress():
        if waiting.state == "sealed":
            view = await buffer.episode(waiting.id)
            await park(buffer, sandboxes, waiting.id, view.epoch, view.n_segments)
