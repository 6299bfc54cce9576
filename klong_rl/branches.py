"""Which turn goes on from which: the context of a turn, and the runs of turns that make one window each.

    built-in agent    prefix ─ 0 ─ 1 ─ 2 ─ ...        turn i sees the newest turns before it (klong_rl.windows)
    from outside      0 ─ 1 ─ 3 ─ 6                   a tree: an agent asks twice, edits what was said, or has
                      └── 2 ─ 4     5 ─ 7             sub-agents; each turn names the one it goes on from

A run is a longest line of turns each of which goes on from the one before it: its window holds the context of its
first turn, then actions and what was given between them. A turn that goes on from a turn that another went on from
already begins a run of its own, and so does one that goes on from none. Hence every action is in exactly one run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from klong_rl.types import Turn


def context_of(prefix_P: np.ndarray, turns: Sequence[Turn], index: int) -> np.ndarray:
    """What the engine was given for turn `index`, int32 [T]."""
    turn = turns[index]
    if turn.prompt_T is None:
        return joined(prefix_P, turns[turn.context_start : index])
    pieces = [turn.prompt_T]
    while turn.follows >= 0:
        turn = turns[turn.follows]
        pieces += [turn.action_A, turn.prompt_T]
    return np.concatenate(pieces[::-1])


def joined(prefix_P: np.ndarray, turns: Sequence[Turn]) -> np.ndarray:
    """The tokens of a prefix and the turns after it, int32 [T]."""
    pieces = [prefix_P]
    for turn in turns:
        pieces += [turn.action_A, turn.observation_O]
    return np.concatenate(pieces)


def given_before(turns: Sequence[Turn], index: int) -> np.ndarray:
    """What turn `index` was given since the action of the turn before it in its run, int32."""
    prompt_T = turns[index].prompt_T
    return turns[index - 1].observation_O if prompt_T is None else prompt_T


def runs(turns: Sequence[Turn]) -> list[list[int]]:
    """The indices of the turns of each run, in the order in which the runs began."""
    made: list[list[int]] = []
    open_runs: dict[int, list[int]] = {}  # by their last turn
    for index in range(len(turns)):
        run = open_runs.pop(_before(turns, index), None)
        if run is None:
            made.append(run := [])
        run.append(index)
        open_runs[index] = run
    return made


def _before(turns: Sequence[Turn], index: int) -> int:
    """The turn that turn `index` goes on from, its context whole; -1 for none."""
    turn = turns[index]
    if turn.prompt_T is not None:
        return turn.follows
    same_start = index > 0 and turn.context_start == turns[index - 1].context_start
    return index - 1 if same_start else -1
