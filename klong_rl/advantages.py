"""From the scores of a group to the advantages of its windows. Pure; one function a baseline, cited.

An advantage rule takes the windows of one complete group and returns one number a window.
"""

from __future__ import annotations

from collections.abc import Sequence

from klong_rl.types import Window


def klong(windows: Sequence[Window]) -> list[float]:
    """Score minus the mean score over the group's windows (KLong, arXiv 2602.17547, section on progressive RL).

    The mean is over windows, so an episode that was split into more of them weighs more. The advantages sum to zero.
    """
    if not windows:
        return []
    baseline = sum(window.score for window in windows) / len(windows)
    return [window.score - baseline for window in windows]
