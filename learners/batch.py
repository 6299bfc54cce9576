"""Windows to packed rows: who trains what (`plan`), and the arrays of one micro-batch (`collate`). Pure.

A micro-batch is one row: whole windows, one after the other, none of which sees another (`starts_W1` bounds them in
attention, positions restart in each). The end is padded to a multiple of `pad_to`, and, where the pieces of a window go
to several ranks, each window to a multiple of `window_pad`, which divides `pad_to`.

    windows ──best fit, longest first──▶ rows of at most the budget ──level──▶ data ranks ──collate──▶ arrays

Invariants, held by property tests: every window is in exactly one row of one data-parallel rank, hence every target
token is trained exactly once; every rank gets the same number of rows (a rank that is short of windows gets empty
ones, since collectives need all ranks); no row is over the token budget, padding included.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from klong_rl.buffer import WindowRef
from klong_rl.types import Window

Plan = list[list[list[str]]]  # [data rank][micro-batch][window id]
Row = list[WindowRef]


@dataclass(frozen=True)
class MicroBatch:
    """One packed row of R tokens, and its N targets: what the objective sees, in the order of the row.

    `starts_W1` are where the windows start, each with its own padding, and R. What pads the row is its last segment, a
    window without targets.
    """

    tokens_R: np.ndarray  # int64
    positions_R: np.ndarray  # int64, from 0 in each window
    starts_W1: np.ndarray  # int32
    places_N: np.ndarray  # int64, where in the row the target is predicted: one before it
    labels_N: np.ndarray  # int64, the targets themselves
    sampler_logprobs_N: np.ndarray  # float32
    versions_N: np.ndarray  # int64, the policy version that sampled the target
    window_N: np.ndarray  # int64, which of the windows it is in
    advantages_W: np.ndarray  # float32, one for each window


def padded(n_tokens: int, pad_to: int) -> int:
    """The row length that holds `n_tokens`, a multiple of `pad_to`."""
    return -(-max(n_tokens, 1) // pad_to) * pad_to


def plan(refs: Sequence[WindowRef], ranks: int, token_budget: int, pad_to: int, window_pad: int = 1) -> Plan:
    """Pack `refs` into as few rows as best fit finds for `ranks` data-parallel ranks, then level the rows.

    Deterministic for a given set of refs, in whatever order they come. Raises ValueError on a window longer than
    `token_budget` once padded, and on an id that comes twice.
    """
    ids = [ref.id for ref in refs]
    if len(set(ids)) != len(ids):
        raise ValueError(f"window ids come twice: {sorted({i for i in ids if ids.count(i) > 1})[:4]}")
    for ref in refs:
        if padded(ref.n_tokens, pad_to) > token_budget:
            raise ValueError(
                f"window {ref.id} takes {padded(ref.n_tokens, pad_to)} tokens padded to {pad_to}, more than "
                f"token_budget={token_budget}; raise token_budget or lower the window length"
            )
    room = token_budget // pad_to * pad_to
    refs = [msgspec.structs.replace(ref, n_tokens=padded(ref.n_tokens, window_pad)) for ref in refs]
    longest_first = sorted(refs, key=lambda ref: (-ref.n_tokens, ref.id))
    rows = best_fit(longest_first, room)
    count = padded(len(rows), ranks)
    rows = level(longest_first, count, room) or [*rows, *([] for _ in range(count - len(rows)))]
    rows.sort(key=_load, reverse=True)
    # In a snake, so that ranks have about as much to do in all, and in each micro-batch.
    laps = [rows[i : i + ranks] for i in range(0, len(rows), ranks)]
    shares = zip(*(lap if i % 2 == 0 else lap[::-1] for i, lap in enumerate(laps)), strict=True)
    return [[[ref.id for ref in row] for row in share] for share in shares]


def best_fit(longest_first: Sequence[WindowRef], room: int) -> list[Row]:
    """Each window into the fullest row that has room for it, or a new one."""
    rows: list[Row] = []
    left: list[tuple[int, int]] = []  # (room left, row), sorted
    for ref in longest_first:
        at = bisect_left(left, (ref.n_tokens, -1))
        if at == len(left):
            rows.append([])
            rest, row = room, len(rows) - 1
        else:
            rest, row = left.pop(at)
        rows[row].append(ref)
        insort(left, (rest - ref.n_tokens, row))
    return rows


def level(longest_first: Sequence[WindowRef], count: int, room: int) -> list[Row] | None:
    """The windows in `count` rows of about equal length, none over `room`; None if they can't be put so."""
    rows: list[Row] = [[] for _ in range(count)]
    loads = [(0, row) for row in range(count)]
    for ref in longest_first:
        load, row = heapq.heappop(loads)
        if load + ref.n_tokens > room:
            return None
        rows[row].append(ref)
        heapq.heappush(loads, (load + ref.n_tokens, row))
    return rows


def _load(row: Row) -> int:
    return sum(ref.n_tokens for ref in row)


def collate(windows: Sequence[Window], pad_to: int, window_pad: int = 1) -> MicroBatch:
    """The arrays of one micro-batch; no windows give a row of padding without a target.

    Raises ValueError on a window whose first token is a target (nothing predicts it) or whose version runs don't
    count its targets.
    """
    for window in windows:
        _check(window)
    lengths = [padded(len(window.tokens_T), window_pad) for window in windows]
    used = sum(lengths)
    if rest := padded(used, pad_to) - used:
        lengths.append(rest)
    starts_W1 = np.cumsum([0, *lengths], dtype=np.int32)
    tokens_R = np.zeros(starts_W1[-1], np.int64)
    for start, window in zip(starts_W1, windows, strict=False):
        tokens_R[start : start + len(window.tokens_T)] = window.tokens_T
    targets = [np.flatnonzero(window.targets_T) for window in windows]
    at_N = _join([start + own for start, own in zip(starts_W1, targets, strict=False)], np.int64)
    runs = np.array([run for window in windows for run in window.versions], np.int64).reshape(-1, 2)
    return MicroBatch(
        tokens_R=tokens_R,
        positions_R=_join([np.arange(length) for length in lengths], np.int64),
        starts_W1=starts_W1,
        places_N=at_N - 1,
        labels_N=tokens_R[at_N],
        sampler_logprobs_N=_join([w.logprobs_T[own] for w, own in zip(windows, targets, strict=True)], np.float32),
        versions_N=np.repeat(*runs.T),
        window_N=_join([np.full(len(own), i) for i, own in enumerate(targets)], np.int64),
        advantages_W=np.array([window.advantage for window in windows], np.float32),
    )


def _check(window: Window) -> None:
    counted = sum(count for _, count in window.versions)
    if window.n_targets() != counted:
        raise ValueError(f"window {window.id} has {window.n_targets()} targets, its version runs count {counted}")
    if len(window.targets_T) and window.targets_T[0]:
        raise ValueError(f"window {window.id} has its first token as a target: no context predicts it")


def _join(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """The parts as one array; none give an empty one."""
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
