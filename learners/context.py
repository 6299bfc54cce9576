"""Which tokens of a packed row a context-parallel rank holds, and the sum over ranks of what each found for its own.

Each window is cut in 2 x ranks equal pieces, and rank r has the r-th and the r-th from the end, so that causal
attention costs all ranks about the same: the order that Transformer Engine's attention and Megatron's rotary positions
expect of packed rows (`DualChunkSwap`). Hence windows are padded to a multiple of 2 x ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.distributed import ProcessGroup, all_reduce


def pieces(starts_W1: np.ndarray, ranks: int, rank: int) -> list[tuple[int, int, int]]:
    """(window's start in the row, first and last-but-one place within it) of each piece that `rank` holds, in order."""
    held = []
    for start, end in zip(starts_W1[:-1].tolist(), starts_W1[1:].tolist(), strict=True):
        size = (end - start) // (2 * ranks)
        for piece in (rank, 2 * ranks - 1 - rank):
            held.append((start, piece * size, (piece + 1) * size))
    return held


def places(starts_W1: np.ndarray, ranks: int, rank: int) -> np.ndarray:
    """Places in the whole row of the tokens that `rank` holds, in its order: int64 [R / ranks]."""
    held = pieces(starts_W1, ranks, rank)
    return np.concatenate([np.arange(start + first, start + last) for start, first, last in held])


def sum_over_ranks(
    own_n: torch.Tensor, *, own_targets_n: torch.Tensor, count: int, group: ProcessGroup
) -> torch.Tensor:
    """All N numbers, the same on every rank, of those that each rank has of its own targets.

    Differentiable: every rank works out the same loss, so each keeps the gradient of its own.
    """
    return _SumOverRanks.apply(own_n, own_targets_n, count, group)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own_n, own_targets_n, count, group):
        ctx.save_for_backward(own_targets_n)
        whole_N = own_n.new_zeros(count)
        whole_N[own_targets_n] = own_n
        if count:
            all_reduce(whole_N, group=group)
        return whole_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_N):
        (own_targets_n,) = ctx.saved_tensors
        return grad_N[own_targets_n], None, None, None
