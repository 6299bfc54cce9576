"""The one context rule: what the model sees when its context is full, when sampling and when splitting alike.

    prefix | turn 0 | turn 1 | ... | turn n-1 | room for the next action
    ^ kept whole                ^ the newest turns, at least `overlap_tokens` of them
               ^ the middle goes, a whole turn at a time

A start, once chosen, stays until the context is full again, so that consecutive turns share one growing context and
therefore one training window (and one prefix cache). From this rule follow, for RL and for SFT:

    every action token is a target exactly once; no window is over `max_tokens`; the prefix is in each; order is kept;
    the overlapping turns are context, not target; and the window that is trained is the context that was sampled.

Pure: no tensors, no I/O. `tests/unit/test_windows.py` holds the invariants above.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from klong_rl.types import EpisodeSpec, Turn, VersionRuns, Window


class ContextOverflow(Exception):
    """Not even the prefix, the newest turn and the next action fit."""


@dataclass(frozen=True)
class ContextRule:
    """All in tokens. `action_tokens` is the room kept for the next action, the most one may sample."""

    max_tokens: int
    overlap_tokens: int
    action_tokens: int

    def room_for_turns(self, prefix_tokens: int, action_tokens: int) -> int:
        return self.max_tokens - prefix_tokens - action_tokens


def context_start(
    turn_tokens: Sequence[int], start: int, prefix_tokens: int, rule: ContextRule, action_tokens: int | None = None
) -> int:
    """First turn that the next action sees, given that the previous action saw turns from `start` on.

    `turn_tokens[i]` is the length of turn i (action and observation). `action_tokens` is the length of the next
    action where it is known (splitting a finished trajectory); unknown, the rule's own room is kept.

    >>> rule = ContextRule(max_tokens=100, overlap_tokens=20, action_tokens=10)
    >>> context_start([30, 30], 0, 20, rule), context_start([30, 30, 15], 0, 20, rule)
    (0, 1)

    Raises ContextOverflow if the newest turn alone is too long: what it answers would be lost, so nothing is dropped
    silently.
    """
    room = rule.room_for_turns(prefix_tokens, max(rule.action_tokens, action_tokens or 0))
    n_turns = len(turn_tokens)
    if room < 0:
        raise ContextOverflow(f"prefix of {prefix_tokens} tokens leaves no room for an action in {rule}")
    if sum(turn_tokens[start:]) <= room:
        return start
    kept, first = 0, n_turns
    while first > start + 1 and (kept < rule.overlap_tokens or first == n_turns):
        if kept + turn_tokens[first - 1] > room:
            break
        first -= 1
        kept += turn_tokens[first]
    if first == n_turns:
        raise ContextOverflow(f"turn {n_turns - 1} of {turn_tokens[-1]} tokens does not fit in {room} of {rule}")
    return first


def with_context_starts(turns: Sequence[Turn], prefix_tokens: int, rule: ContextRule) -> list[Turn]:
    """The same turns, as if sampled under `rule`: what SFT does to a trajectory that came from elsewhere."""
    lengths = [turn.n_tokens() for turn in turns]
    start, placed = 0, []
    for index, turn in enumerate(turns):
        start = context_start(lengths[:index], start, prefix_tokens, rule, len(turn.action_A))
        placed.append(msgspec.structs.replace(turn, context_start=start))
    return placed


def split(spec: EpisodeSpec, prefix_P: np.ndarray, turns: Sequence[Turn], score: float = 0.0) -> list[Window]:
    """The training windows of one episode: one for each run of turns that were sampled with the same start."""
    windows: list[Window] = []
    first = 0
    for index in range(1, len(turns) + 1):
        if index == len(turns) or turns[index].context_start != turns[first].context_start:
            windows.append(_window(spec, len(windows), prefix_P, turns, first, index, score))
            first = index
    return windows


def window_of_each(spec: EpisodeSpec, turns: Sequence[Turn]) -> list[str]:
    """For each turn of an episode, the id of the window that `split` makes it a target of."""
    starts = [turn.context_start for turn in turns]
    new = [index > 0 and start != starts[index - 1] for index, start in enumerate(starts)]
    return [_window_id(spec, number) for number in itertools.accumulate(map(int, new))]


def _window_id(spec: EpisodeSpec, number: int) -> str:
    return f"{spec.id}/w{number}"


def _window(
    spec: EpisodeSpec, number: int, prefix_P: np.ndarray, turns: Sequence[Turn], first: int, end: int, score: float
) -> Window:
    """Turns `[first, end)` as targets after the context they were sampled in. The last observation isn't context."""
    pieces = [(prefix_P, False, None)]
    for turn in turns[turns[first].context_start : end]:
        pieces.append((turn.action_A, turn.index >= first, turn.logprobs_A))
        if turn.index < end - 1:
            pieces.append((turn.observation_O, False, None))
    zeros = [np.zeros(len(tokens), np.float32) for tokens, _, _ in pieces]
    return Window(
        id=_window_id(spec, number),
        episode=spec.id,
        group=spec.group,
        stage=spec.stage,
        tokens_T=np.concatenate([tokens for tokens, _, _ in pieces]).astype(np.int32),
        targets_T=np.concatenate([np.full(len(tokens), target, np.uint8) for tokens, target, _ in pieces]),
        logprobs_T=np.concatenate([p if target else z for (_, target, p), z in zip(pieces, zeros, strict=True)]),
        versions=_merge_runs(turns[first:end]),
        score=score,
    )


def _merge_runs(turns: Sequence[Turn]) -> VersionRuns:
    runs: list[tuple[int, int]] = []
    for turn in turns:
        for version, count in turn.versions:
            if runs and runs[-1][0] == version:
                runs[-1] = (version, runs[-1][1] + count)
            else:
                runs.append((version, count))
    return tuple(runs)
