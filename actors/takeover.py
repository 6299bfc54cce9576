"""Where a claimed episode begins: at its prompt, or where its last holder left it.

    what the buffer holds          its sandbox is there      only a snapshot is         neither
    nothing                        remove it, set up         (never the case)           set up
    segments                       adopt, go on              restore it, rewind to it   rewind to 0, set up
    segments, an intended action   adopt, "interrupted"      as far as it goes          rewind to 0, set up
    an outcome (not judged)        adopt, seal again         restore it, act on         rewind to 0, set up

An agent from outside that isn't `resumable` (docs/agents.md) has lost what it knew with its process. Then an episode
that had ended is sealed again if all of its files are there; any other is rewound to 0 and set up.

Nothing sampled is dropped but by a rewind, which counts it with the reason. A command is never run a second time:
whoever finds an intended action doesn't know how far it came, and tells the agent so.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from klong_rl import chain
from klong_rl.buffer import Buffer, Claim, Progress, Snapshot
from klong_rl.failures import AgentFailure
from klong_rl.types import EpisodeSpec, Outcome, Turn

log = logging.getLogger(__name__)

# Reasons of a rewind.
GONE, RESTORED, BROKEN = "sandbox gone", "sandbox gone: from its snapshot", "turns damaged"
FORGOTTEN = "agent's process gone"


class Begun(NamedTuple):
    """A sandbox, and what has happened in it."""

    sandbox: Any
    turns: list[Turn]
    intended: Turn | None = None
    outcome: Outcome | None = None


async def take_over(buffer: Buffer, sandboxes: Any, claim: Claim, resumable: bool = True) -> Begun:
    """The sandbox of a claimed episode and its turns so far; the buffer agrees with it when this returns.

    `resumable`: the agent can go on where another process left off. Raises StaleEpoch, and whatever the sandboxes
    raise.
    """
    episode = claim.spec.id
    progress = await buffer.progress(episode)
    if not _has_begun(progress):
        if claim.epoch > 1:
            await _remove_left_over(sandboxes, episode)
        return Begun(await _set_up(sandboxes, claim), [])
    turns = [turn for segment in progress.segments for turn in segment.turns]
    try:
        if turns:
            chain.check(episode, progress.segments[0].prefix_P, turns)
    except chain.BrokenChain as broken:
        log.error("%s", broken)
        return await _start_again(buffer, sandboxes, claim, BROKEN)
    if not resumable and progress.outcome is None:
        return await _start_again(buffer, sandboxes, claim, FORGOTTEN)
    sandbox = await _adopt(sandboxes, episode)
    if sandbox is not None:
        log.info("episode %s goes on after turn %d in its own sandbox", episode, len(turns))
        return Begun(sandbox, turns, progress.intended, progress.outcome)
    snapshot = progress.snapshot
    if snapshot is not None and not resumable and snapshot.n_segments == len(progress.segments):
        restored = await sandboxes.create(episode, claim.epoch, snapshot.image, claim.spec.task.limits)
        return Begun(restored, turns, None, progress.outcome)
    if snapshot is not None and resumable:
        return await _restore(buffer, sandboxes, claim, progress, turns, snapshot)
    return await _start_again(buffer, sandboxes, claim, GONE)


async def _start_again(buffer: Buffer, sandboxes: Any, claim: Claim, reason: str) -> Begun:
    """From the prompt, in a new sandbox. All that was sampled is given up."""
    given_up = await buffer.rewind(claim.spec.id, claim.epoch, 0, reason)
    log.warning("episode %s starts again, %d tokens given up: %s", claim.spec.id, given_up, reason)
    await _remove_left_over(sandboxes, claim.spec.id)
    return Begun(await _set_up(sandboxes, claim), [])


def _has_begun(progress: Progress) -> bool:
    return bool(progress.segments or progress.intended or progress.outcome)


async def _restore(
    buffer: Buffer, sandboxes: Any, claim: Claim, progress: Progress, turns: list[Turn], snapshot: Snapshot
) -> Begun:
    n, episode, kept, intended = snapshot.n_segments, claim.spec.id, turns, progress.intended
    if n < len(progress.segments) or progress.outcome is not None:
        # Before the sandbox is there: whoever adopts it must find turns that agree with it.
        given_up = await buffer.rewind(episode, claim.epoch, n, RESTORED)
        log.warning("episode %s goes back to its snapshot after turn %d, %d tokens given up", episode, n, given_up)
        kept, intended = [turn for segment in progress.segments[:n] for turn in segment.turns], None
    sandbox = await sandboxes.create(episode, claim.epoch, snapshot.image, claim.spec.task.limits)
    log.info("episode %s goes on after turn %d from its snapshot", episode, len(kept))
    return Begun(sandbox, kept, intended)


async def _remove_left_over(sandboxes: Any, episode: str) -> None:
    """A sandbox whose set-up may have been cut short, or whose turns can't be trusted, is of no use."""
    left_over = await _adopt(sandboxes, episode)
    if left_over is not None:
        await left_over.close()


async def _adopt(sandboxes: Any, episode: str) -> Any:
    """The episode's sandbox; None if it is gone, or broken for good by its agent, which is as good as gone."""
    try:
        return await sandboxes.adopt(episode)
    except AgentFailure as failure:
        log.warning("the sandbox of episode %s can't be used again: %s", episode, failure)
        return None


async def _set_up(sandboxes: Any, claim: Claim) -> Any:
    """A new sandbox with the task's files."""
    spec: EpisodeSpec = claim.spec
    sandbox = await sandboxes.create(spec.id, claim.epoch, spec.task.image, spec.task.limits)
    try:
        await sandbox.write_many(spec.task.files)
    except BaseException:
        await sandbox.close()
        raise
    return sandbox
