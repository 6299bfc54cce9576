"""What an actor does when an episode can't go on here: give it back, a limited number of times, and clean up."""

from __future__ import annotations

import logging
from typing import Any

from klong_rl.buffer import Buffer, StaleEpoch, Unknown
from klong_rl.failures import InfrastructureFailure

log = logging.getLogger(__name__)


async def give_back(buffer: Buffer, episode: str, epoch: int, reason: str, max_attempts: int) -> None:
    """Requeue an episode after a failure of ours; drop it, with the reason, when it has failed `max_attempts` times."""
    try:
        failures = await buffer.requeue(episode, epoch, reason)
        if failures >= max_attempts:
            await buffer.drop(episode, f"gave up after {failures} attempts: {reason}")
    except (StaleEpoch, Unknown) as stale:  # unknown: final and archived since
        log.warning("episode %s goes on elsewhere: %s", episode, stale)


async def drop(buffer: Buffer, episode: str, epoch: int, reason: str) -> None:
    """Drop an episode whose task is broken, unless it goes on elsewhere."""
    try:
        await buffer.drop(episode, reason, epoch)
    except (StaleEpoch, Unknown) as stale:  # unknown: final and archived since
        log.warning("episode %s goes on elsewhere: %s", episode, stale)


async def remove(sandbox: Any) -> None:
    """Remove a sandbox; one that can't be removed now is left to the run's reaper, and said so."""
    try:
        await sandbox.close()
    except InfrastructureFailure as failure:
        log.warning("a sandbox of episode %s stays until the run ends: %s", sandbox.episode, failure)
