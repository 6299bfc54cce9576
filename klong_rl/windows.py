"""The one context rule: what the model sees when its context is full, when sampling and when splitting alike.

    prefix | turn 0 | turn 1 | ... | turn n-1 | room for the next action
    ^ kept whole                ^ the newest turns, at least `overlap_tokens` of them
               ^ the middle goes, a whole turn at a time

A start, once chosen, stays until the context is full again, so that consecutive turns share one growing context and
therefore one training window (and one prefix cache). From this rule follow, for RL and for SFT:

    every action token is a target exactly once; no window is over `max_tokens`; the prefix is in each; order is kept;
    the overlapping turns are context, not target; and the window that is trained is the context that was sampled.

Sampling stops where even the newest turn doesn't fit (ContextOverflow). A finished trajectory goes on there: only at
such a place a window begins inside a turn, with as many of the newest tokens as fit beside the action; an action
that is longer than a window is divided into several, each with up to `overlap_tokens` before it as context.

Pure: no tensors, no I/O. `tests/unit/test_windows.py` holds the invariants above.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from klong_rl.branches import context_of, given_before, runs
from klong_rl.config import AgentConfig, WindowConfig
from klong_rl.types import EpisodeSpec, Trajectory, Turn, VersionRuns, Window


class ContextOverflow(Exception):
    """Not even the prefix, the newest turn and the next action fit."""


@dataclass(frozen=True)
class ContextRule:
    """All in tokens. `action_tokens` is the room kept for the next action, the most one may sample."""

    max_tokens: int
    overlap_tokens: int
    action_tokens: int

    @classmethod
    def of(cls, window: WindowConfig, agent: AgentConfig) -> ContextRule:
        return cls(window.max_tokens, window.overlap_tokens, agent.action_tokens)

    def room_for_turns(self, prefix_tokens: int, action_tokens: int) -> int:
        return self.max_tokens - prefix_tokens - action_tokens


class Span(NamedTuple):
    """A window as offsets into a trajectory's tokens: context from `first`, targets from `target`, up to `end`."""

    first: int
    target: int
    end: int


def context_start(turn_tokens: Sequence[int], start: int, prefix_tokens: int, rule: ContextRule) -> int:
    """First turn that the next action sees, given that the previous action saw turns from `start` on.

    `turn_tokens[i]` is the length of turn i (action and observation).

    >>> rule = ContextRule(max_tokens=100, overlap_tokens=20, action_tokens=10)
    >>> context_start([30, 30], 0, 20, rule), context_start([30, 30, 15], 0, 20, rule)
    (0, 1)

    Raises ContextOverflow if the newest turn alone is too long: what it answers would be lost, so nothing is dropped
    silently.
    """
    starts = [0, *itertools.accumulate(turn_tokens)]
    return _next_start(starts, len(turn_tokens), start, prefix_tokens, rule, rule.action_tokens)


def _next_start(
    starts: Sequence[int], index: int, start: int, prefix_tokens: int, rule: ContextRule, action_tokens: int
) -> int:
    """First turn that the action of turn `index` sees; turn i has the tokens from `starts[i]` to `starts[i + 1]`."""
    room = rule.room_for_turns(prefix_tokens, action_tokens)
    if room < 0:
        raise ContextOverflow(f"prefix of {prefix_tokens} tokens leaves no room for an action in {rule}")
    here = starts[index]
    if here - starts[start] <= room:
        return start
    first = index
    while first > start + 1 and (here - starts[first] < rule.overlap_tokens or first == index):
        if here - starts[first - 1] > room:
            break
        first -= 1
    if first == index:
        newest = here - starts[index - 1]
        raise ContextOverflow(f"turn {index - 1} of {newest} tokens does not fit in {room} of {rule}")
    return first


def flat(episode: str, prefix_P: np.ndarray, turns: Iterable[tuple[np.ndarray, np.ndarray]]) -> Trajectory:
    """(action_A, observation_O) of each turn as one trajectory."""
    pieces = [piece for turn in turns for piece in turn]
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    ends = lengths.cumsum()
    agent = np.arange(len(pieces)) % 2 == 0
    return Trajectory(
        id=episode,
        prefix_P=prefix_P,
        tokens_T=np.concatenate(pieces).astype(np.int32, copy=False) if pieces else np.zeros(0, np.int32),
        agent_T=np.repeat(agent.view(np.uint8), lengths),
        starts_K=(ends - lengths)[::2],
        ends_K=ends[::2],
    )


def spans(trajectory: Trajectory, rule: ContextRule) -> Iterator[Span]:
    """Where the windows of a finished trajectory lie: its turns as if sampled under `rule`, oldest first.

    Raises ContextOverflow if the prefix alone fills a window.
    """
    starts, ends, prefix_tokens = trajectory.starts_K.tolist(), trajectory.ends_K.tolist(), len(trajectory.prefix_P)
    capacity = rule.room_for_turns(prefix_tokens, 0)
    if capacity < 1:
        raise ContextOverflow(f"prefix of {prefix_tokens} tokens leaves no room for an action in {rule}")
    start, target = 0, None  # of the window that grows, if one does
    for index, (begin, end) in enumerate(zip(starts, ends, strict=True)):
        try:
            action_tokens = max(rule.action_tokens, end - begin)
            begins = _next_start(starts, index, start, prefix_tokens, rule, action_tokens)
        except ContextOverflow:
            if target is not None:
                yield Span(starts[start], starts[target], ends[index - 1])
            yield from _divided(begin, end, capacity, rule.overlap_tokens)
            start, target = index, None
            continue
        if target is not None and begins != start:
            yield Span(starts[start], starts[target], ends[index - 1])
            target = None
        start, target = begins, index if target is None else target
    if target is not None:
        yield Span(starts[start], starts[target], ends[-1])


def _divided(begin: int, end: int, capacity: int, overlap: int) -> Iterator[Span]:
    """Windows for the action in [begin, end) where turns can't stay whole; half of each at most is context."""
    while begin < end:
        context = min(begin, max(min(overlap, capacity // 2), capacity - (end - begin)))
        stop = min(end, begin + capacity - context)
        yield Span(begin - context, begin, stop)
        begin = stop


def windows(trajectory: Trajectory, rule: ContextRule) -> Iterator[Window]:
    """The training windows of a finished trajectory, one at a time: of the longest one, few are in memory at once.

    Raises ContextOverflow if the prefix alone fills a window.
    """
    for number, span in enumerate(spans(trajectory, rule)):
        tokens_T, targets_T = _cut(trajectory, span)
        yield Window(
            id=f"{trajectory.id}/w{number}",
            episode=trajectory.id,
            group=trajectory.id,
            stage=0,
            tokens_T=tokens_T,
            targets_T=targets_T,
            logprobs_T=np.zeros(len(tokens_T), np.float32),
            versions=((0, int(targets_T.sum())),),
        )


def _cut(trajectory: Trajectory, span: Span) -> tuple[np.ndarray, np.ndarray]:
    """tokens_T and targets_T of one window."""
    prefix_P = trajectory.prefix_P
    tokens_T = np.concatenate([prefix_P, trajectory.tokens_T[span.first : span.end]])
    targets_T = np.zeros(len(tokens_T), np.uint8)
    targets_T[len(prefix_P) + span.target - span.first :] = trajectory.agent_T[span.target : span.end]
    return tokens_T, targets_T


def split(spec: EpisodeSpec, prefix_P: np.ndarray, turns: Sequence[Turn], score: float = 0.0) -> list[Window]:
    """The training windows of one sampled episode: one for each run of turns (klong_rl.branches) with a target in it.

    A masked action is context in its window; those at its end, which nothing was sampled after, are left out.
    """
    made = []
    for number, run in enumerate(runs(turns)):
        trained = [index for index in run if not turns[index].masked]
        if not trained:
            continue
        run = run[: run.index(trained[-1]) + 1]
        pieces = [(context_of(prefix_P, turns, run[0]), None)]
        for index in run:
            if index != run[0]:
                pieces.append((given_before(turns, index), None))
            pieces.append((turns[index].action_A, None if turns[index].masked else turns[index].logprobs_A))
        targets = [np.full(len(tokens), logprobs is not None, np.uint8) for tokens, logprobs in pieces]
        logprobs = [np.zeros(len(t), np.float32) if logprobs is None else logprobs for t, logprobs in pieces]
        made.append(
            Window(
                id=_window_id(spec, number),
                episode=spec.id,
                group=spec.group,
                stage=spec.stage,
                tokens_T=np.concatenate([tokens for tokens, _ in pieces]).astype(np.int32, copy=False),
                targets_T=np.concatenate(targets),
                logprobs_T=np.concatenate(logprobs),
                versions=_merge_runs([turns[index] for index in trained]),
                score=score,
            )
        )
    return made


def trajectories(episode: str, turns: Sequence[Turn]) -> Iterator[Trajectory]:
    """The runs of an agent from outside, each with what its first turn was given as its prefix; masked is context."""
    for number, run in enumerate(runs(turns)):
        prefix = [context_of(np.zeros(0, np.int32), turns, run[0])]
        answered: list[tuple[np.ndarray, list[np.ndarray]]] = []  # an action, and what was given after it
        for index in run:
            given = answered[-1][1] if answered else prefix
            if index != run[0]:
                given.append(given_before(turns, index))
            if turns[index].masked:
                given.append(turns[index].action_A)
            else:
                answered.append((turns[index].action_A, [np.zeros(0, np.int32)]))
        if answered:
            pairs = ((action_A, np.concatenate(given)) for action_A, given in answered)
            yield flat(f"{episode}/w{number}", np.concatenate(prefix), pairs)


def window_of_each(spec: EpisodeSpec, turns: Sequence[Turn]) -> list[str]:
    """For each turn of an episode, the id of the window that `split` makes it a target of, or masks it in."""
    names = [""] * len(turns)
    for number, run in enumerate(runs(turns)):
        for index in run:
            names[index] = _window_id(spec, number)
    return names


def _window_id(spec: EpisodeSpec, number: int) -> str:
    return f"{spec.id}/w{number}"


def _merge_runs(turns: Sequence[Turn]) -> VersionRuns:
    merged: list[tuple[int, int]] = []
    for turn in turns:
        for version, count in turn.versions:
            if merged and merged[-1][0] == version:
                merged[-1] = (version, merged[-1][1] + count)
            else:
                merged.append((version, count))
    return tuple(merged)
