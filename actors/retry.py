"""What an actor does when an episode can't go on here: give it back, a limited number of times, and clean up."""

from __future__ import annotations

import logging
from typing import Any

from klong_rl.buffer import Buffer, StaleEpoch, Unknown
from klong_rl.failures import AgentFailure, InfrastructureFailure

log = logging.getLogger(__name__)


async def give_back(buffer: Buffer, sandboxes: Any, episode: str, epoch: int, reason: str, max_attempts: int) -> None:
    """Requeue an episode after a failure of ours; drop it when it failed `max_attempts` times without a step on."""
    try:
        failures = await buffer.requeue(episode, epoch, reason)
        if failures >= max_attempts and await buffer.drop(episode, f"gave up after {failures} attempts: {reason}"):
            await clear(sandboxes, episode)
    except (StaleEpoch, Unknown) as stale:  # unknown: final and archived since
        log.warning("episode %s goes on elsewhere: %s", episode, stale)


async def drop(buffer: Buffer, sandboxes: Any, episode: str, epoch: int, reason: str) -> None:
    """Drop an episode whose task is broken, unless it goes on elsewhere."""
    try:
        if await buffer.drop(episode, reason, epoch):
            await clear(sandboxes, episode)
    except (StaleEpoch, Unknown) as stale:  # unknown: final and archived since
        log.warning("episode %s goes on elsewhere: %s", episode, stale)


async def clear(sandboxes: Any, episode: str, sandbox: Any = None, keep: str = "") -> None:
    """Remove what a final episode leaves: its sandbox, `sandbox` if it is at hand, and its snapshots but `keep`.

    What can't be removed now is left to the run's reaper, and said so.
    """
    try:
        sandbox = sandbox or await sandboxes.adopt(episode)
        if sandbox is not None:
            await sandbox.close()
        await sandboxes.forget_snapshots(episode, keep)
    except (InfrastructureFailure, AgentFailure) as failure:
        log.warning("what episode %s left stays until the run ends: %s", episode, failure)
