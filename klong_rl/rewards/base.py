"""A reward: one async function `(episode, sandbox) -> Verdict`, named in config by import path.

`episode` is what was attempted and how it ended; `sandbox` is the container it left behind (sandboxes.base.Sandbox).
A reward that can't be computed raises: `TaskFailure` if the task is at fault, `InfrastructureFailure` if we are. It
never returns a low score for a failure of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from klong_rl.types import EpisodeSpec, Outcome, Verdict


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode as it waits to be judged."""

    spec: EpisodeSpec
    outcome: Outcome


Reward = Callable[[FinishedEpisode, Any], Awaitable[Verdict]]
