"""`learners.softmax` for a GPU: each function reads the logits once, in their own dtype, and keeps nothing as large.

A program takes a row of the vocabulary; the statistics are a running softmax (Milakov and Gimelshein, arXiv
1805.02867), in float32. The gradient takes the place of the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from learners.softmax import Pull, Statistics

BLOCK = 4096  # columns at a time
WARPS = 8


def statistics(logits_CV: torch.Tensor, columns_C: torch.Tensor, temperature: float, with_dot: bool) -> Statistics:
    """See `learners.softmax.statistics`; the logits' rows are contiguous."""
    count, width = logits_CV.shape
    out_4C = logits_CV.new_zeros((4, count), dtype=torch.float32)
    if count:
        _statistics[(count,)](
            logits_CV, columns_C, out_4C, count, width, logits_CV.stride(0), 1 / temperature,
            WITH_DOT=with_dot, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return Statistics(*out_4C)


def gradient(logits_CV: torch.Tensor, columns_C: torch.Tensor, temperature: float, pull: Pull) -> torch.Tensor:
    """See `learners.softmax.gradient`; what is given back is `logits_CV`, overwritten."""
    count, width = logits_CV.shape
    with_entropy = pull.entropies_C is not None
    unused_C = pull.logsumexp_C
    if count:
        _gradient[(count, triton.cdiv(width, BLOCK))](
            logits_CV, columns_C, pull.logsumexp_C, pull.grad_logprobs_C.contiguous(),
            pull.entropies_C if with_entropy else unused_C,
            pull.grad_entropies_C.contiguous() if with_entropy else unused_C,
            width, logits_CV.stride(0), 1 / temperature,
            WITH_ENTROPY=with_entropy, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return logits_CV


@triton.jit
def _statistics(logits, columns, out, count, width, stride, scale, WITH_DOT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride
    largest, total, dot = float("-inf"), 0.0, 0.0
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        z = tl.load(base + place, mask=place < width, other=float("-inf")).to(tl.float32) * scale
        larger = tl.maximum(largest, tl.max(z, 0))
        shrink = tl.exp(largest - larger)
        weights = tl.exp(z - larger)
        total = total * shrink + tl.sum(weights, 0)
        if WITH_DOT:
            dot = dot * shrink + tl.sum(tl.where(weights > 0, weights * z, 0.0), 0)
        largest = larger
    column = tl.load(columns + row)
    label = tl.load(base + tl.maximum(column, 0)).to(tl.float32) * scale
    tl.store(out + row, largest)
    tl.store(out + count + row, total)
    tl.store(out + 2 * count + row, tl.where(column >= 0, label, 0.0))
    tl.store(out + 3 * count + row, dot)


@triton.jit
def _gradient(
    logits, columns, logsumexps, grad_logprobs, entropies, grad_entropies,
    width, stride, scale, WITH_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = logits + row * stride + place
    z = tl.load(at, mask=place < width, other=0.0).to(tl.float32) * scale
    logsumexp, grad_label = tl.load(logsumexps + row), tl.load(grad_logprobs + row)
    pull = grad_label
    if WITH_ENTROPY:
        pull = tl.load(grad_entropies + row) * (z - logsumexp + tl.load(entropies + row)) + grad_label
    grad = -tl.exp(z - logsumexp) * pull + tl.where(place == tl.load(columns + row), grad_label, 0.0)
    tl.store(at, (grad * scale).to(logits.dtype.element_ty), mask=place < width)
