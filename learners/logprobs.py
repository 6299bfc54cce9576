"""Log-probs and entropies of labels from hidden states and the head's weight, never with more logits than a chunk's.

    forward    per chunk of tokens: logits ─▶ their max, sum of exponentials, the label's logit (learners.softmax)
               once: the tensor ranks' parts of the vocabulary are combined, two small all-reduces over [., N]
    backward   per chunk: logits again ─▶ their gradient ─▶ of hidden states and weight
               once: hidden-state gradients are summed over the tensor ranks

Logits stay in the model's dtype. Where all of them are one chunk they are kept, and their gradient takes their place;
where not, they are dropped and multiplied again: one more product with the head's weight, and each chunk adds a whole
gradient of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

from learners import softmax
from learners.softmax import Pull, Statistics


def label_logprobs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    temperature: float,
    *,
    chunk: int,
    group: ProcessGroup | None = None,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log p(label) [N] and, if wanted, the entropy of p [N] in nats; p = softmax(hidden @ weight.T / temperature).

    With a tensor-parallel `group`, `weight_VH` is this rank's part of the vocabulary (equal parts, in rank order, no
    padding rows), `hidden_NH` and `labels_N` are the same on all its ranks, and so are the answers. Both are float32
    (float64 of float64), whatever the dtype of the products; differentiable once, with respect to `hidden_NH`, whose
    gradient is whole on every rank, and `weight_VH`. N may be 0. `chunk` is in tokens.

    Raises ValueError for a temperature that is not positive or a chunk below 1.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0: at 0 the policy has no log-probs")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least one token")
    keep = len(labels_N) <= chunk and torch.is_grad_enabled()
    return _LabelLogprobs.apply(hidden_NH, weight_VH, labels_N, temperature, chunk, group, with_entropy, keep)


class _LabelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, labels_N, temperature, chunk, group, with_entropy, keep):
        columns_N = _columns(labels_N, weight_VH, group)
        parts = []
        for part in _chunks(len(labels_N), chunk):
            logits_CV = hidden_NH[part] @ weight_VH.T  # in the model's dtype, as the sampler's are
            parts.append(_on(logits_CV).statistics(logits_CV, columns_N[part], temperature, with_entropy))
        whole = Statistics(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
        if group is not None:
            whole = _combine(whole, group)
        logsumexp_N = whole.max_C + whole.sum_C.log()
        entropies_N = logsumexp_N - whole.dot_C / whole.sum_C if with_entropy else None
        ctx.save_for_backward(hidden_NH, weight_VH, columns_N, logsumexp_N, entropies_N)
        ctx.temperature, ctx.chunk, ctx.group = temperature, chunk, group
        ctx.kept_logits = logits_CV if keep else None
        ctx.set_materialize_grads(False)  # None, not zeros, where no gradient flows
        return whole.label_C - logsumexp_N, entropies_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logprobs_N, grad_entropies_N):
        hidden_NH, weight_VH, columns_N, logsumexp_N, entropies_N = ctx.saved_tensors
        if grad_logprobs_N is None:
            grad_logprobs_N = torch.zeros_like(logsumexp_N)
        pull = Pull(logsumexp_N, grad_logprobs_N)
        if grad_entropies_N is not None:
            pull = Pull(logsumexp_N, grad_logprobs_N, entropies_N, grad_entropies_N)
        kept, ctx.kept_logits = ctx.kept_logits, None  # overwritten, so a second backward pass multiplies again
        grad_hidden, grad_weight_VH = [], None
        for part in _chunks(len(columns_N), ctx.chunk):
            logits_CV = hidden_NH[part] @ weight_VH.T if kept is None else kept
            of_part = Pull(*(None if each is None else each[part] for each in pull))
            grad_CV = _on(logits_CV).gradient(logits_CV, columns_N[part], ctx.temperature, of_part)
            grad_hidden.append(grad_CV @ weight_VH)
            grad_weight_VH = _add_product(grad_weight_VH, grad_CV.T, hidden_NH[part], logsumexp_N.dtype)
        grad_hidden_NH = torch.cat(grad_hidden)
        if ctx.group is not None and len(columns_N):
            # Summed over ranks at full precision.
            grad_hidden_NH = grad_hidden_NH.to(logsumexp_N.dtype)
            all_reduce(grad_hidden_NH, group=ctx.group)
        return grad_hidden_NH.to(hidden_NH.dtype), grad_weight_VH.to(weight_VH.dtype), *[None] * 6


def _on(logits_CV: torch.Tensor) -> ModuleType:
    """What works on these logits: learners.softmax, or its counterpart for a GPU."""
    if not logits_CV.is_cuda or logits_CV.dtype == torch.float64:
        return softmax
    from learners import softmax_gpu  # needs Triton, which torch for CPUs doesn't bring

    return softmax_gpu


def _chunks(n_tokens: int, chunk: int) -> Iterator[slice]:
    """Even ones of at most `chunk`; at least one, which may be empty."""
    count = max(1, -(-n_tokens // chunk))
    size = max(1, -(-n_tokens // count))
    return (slice(start, start + size) for start in range(0, max(1, n_tokens), size))


def _add_product(
    total_VH: torch.Tensor | None, left_VC: torch.Tensor, right_CH: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """left @ right, added to `total_VH` in `dtype` if there is one. The first product is rounded once, as a whole."""
    product_VH = left_VC @ right_CH
    if total_VH is None:
        return product_VH
    return total_VH.to(dtype).add_(product_VH)


def _columns(labels_N: torch.Tensor, weight_VH: torch.Tensor, group: ProcessGroup | None) -> torch.Tensor:
    """Where each label stands in this rank's part of the vocabulary, [N]; -1 where another rank holds it."""
    if group is None:
        return labels_N
    columns_N = labels_N - group.rank() * len(weight_VH)
    return columns_N.where((columns_N >= 0) & (columns_N < len(weight_VH)), -1)


def _combine(part: Statistics, group: ProcessGroup) -> Statistics:
    """The ranks' parts as those of the whole vocabulary."""
    if not len(part.max_C):
        return part
    max_C = part.max_C.clone()
    all_reduce(max_C, ReduceOp.MAX, group)
    scale_C = (part.max_C - max_C).exp()
    sums = torch.stack([part.sum_C * scale_C, part.label_C, part.dot_C * scale_C])
    all_reduce(sums, group=group)
    return Statistics(max_C, *sums)
