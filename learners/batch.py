"""Windows to micro-batches: who trains what (`plan`), and the arrays of one micro-batch (`collate`). Pure.

Invariants, held by property tests: every window is in exactly one micro-batch of one data-parallel rank, hence every
target token is trained exactly once; every rank gets the same number of micro-batches (a rank that is short of windows
gets empty ones, since collectives need all ranks); no micro-batch takes more than the token budget, padding included.

    windows ──sort by length, deal in a snake──▶ data ranks ──cut by budget──▶ micro-batches ──collate──▶ arrays
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from klong_rl.buffer import WindowRef
from klong_rl.types import Window

Plan = list[list[list[str]]]  # [data rank][micro-batch][window id]


@dataclass(frozen=True)
class MicroBatch:
    """Right-padded rows. Position t speaks of the token at t + 1: its label, mask, sampler log-prob and version."""

    tokens_BT: np.ndarray  # int64
    positions_BT: np.ndarray  # int64
    labels_BT: np.ndarray  # int64, tokens_BT one to the left
    mask_BT: np.ndarray  # float32, 1.0 where the label is a target
    sampler_logprobs_BT: np.ndarray  # float32, 0.0 elsewhere
    versions_BT: np.ndarray  # int64, the version that sampled the label, -1 elsewhere
    advantages_B: np.ndarray  # float32


def padded(n_tokens: int, pad_to: int) -> int:
    """The row length that holds `n_tokens`, a multiple of `pad_to`."""
    return -(-max(n_tokens, 1) // pad_to) * pad_to


def plan(refs: Sequence[WindowRef], ranks: int, token_budget: int, pad_to: int) -> Plan:
    """Spread `refs` over `ranks` data-parallel ranks and cut each share into micro-batches.

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
    longest_first = sorted(refs, key=lambda ref: (-ref.n_tokens, ref.id))
    shares: list[list[WindowRef]] = [[] for _ in range(ranks)]
    for i, ref in enumerate(longest_first):
        lap, place = divmod(i, ranks)
        shares[place if lap % 2 == 0 else ranks - 1 - place].append(ref)
    cut = [_cut(share, token_budget, pad_to) for share in shares]
    count = max(1, *(len(batches) for batches in cut))
    return [[[ref.id for ref in batch] for batch in _grow(batches, count, pad_to)] for batches in cut]


def _cut(share: list[WindowRef], token_budget: int, pad_to: int) -> list[list[WindowRef]]:
    """Cut a longest-first share into runs whose padded rectangle fits the budget."""
    batches: list[list[WindowRef]] = []
    for ref in share:
        if batches and padded(batches[-1][0].n_tokens, pad_to) * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(ref)
        else:
            batches.append([ref])
    return batches


def _grow(batches: list[list[WindowRef]], count: int, pad_to: int) -> list[list[WindowRef]]:
    """Split the costliest micro-batches until there are `count`; add empty ones when none can be split."""
    batches = list(batches)
    while len(batches) < count:
        splittable = [i for i, batch in enumerate(batches) if len(batch) > 1]
        if not splittable:
            batches.append([])
            continue
        costliest = max(splittable, key=lambda i: padded(batches[i][0].n_tokens, pad_to) * len(batches[i]))
        batch = batches[costliest]
        batches[costliest : costliest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return batches


def collate(windows: Sequence[Window], pad_to: int) -> MicroBatch:
    """The arrays of one micro-batch; no windows give one row of padding without a target.

    Raises ValueError on a window whose first token is a target (nothing predicts it) or whose version runs don't
    count its targets.
    """
    rows = max(len(windows), 1)
    length = padded(max((len(w.tokens_T) for w in windows), default=1), pad_to)
    tokens_BT = np.zeros((rows, length), np.int64)
    mask_BT = np.zeros((rows, length), np.float32)
    logprobs_BT = np.zeros((rows, length), np.float32)
    versions_BT = np.full((rows, length), -1, np.int64)
    advantages_B = np.zeros(rows, np.float32)
    for row, window in enumerate(windows):
        targets = np.flatnonzero(window.targets_T)
        counted = sum(count for _, count in window.versions)
        if len(targets) != counted:
            raise ValueError(f"window {window.id} has {len(targets)} targets, its version runs count {counted}")
        if len(targets) and targets[0] == 0:
            raise ValueError(f"window {window.id} has its first token as a target: no context predicts it")
        tokens_BT[row, : len(window.tokens_T)] = window.tokens_T
        mask_BT[row, targets - 1] = 1.0
        logprobs_BT[row, targets - 1] = window.logprobs_T[targets]
        versions_BT[row, targets - 1] = np.repeat(*np.array(window.versions, np.int64).reshape(-1, 2).T)
        advantages_B[row] = window.advantage
    labels_BT = np.zeros_like(tokens_BT)
    labels_BT[:, :-1] = tokens_BT[:, 1:]
    positions_BT = np.broadcast_to(np.arange(length), tokens_BT.shape)
    return MicroBatch(tokens_BT, positions_BT, labels_BT, mask_BT, logprobs_BT, versions_BT, advantages_B)
