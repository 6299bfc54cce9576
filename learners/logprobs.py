"""Log-probs and entropies of labels from hidden states and the head's weight, never with all the logits in memory.

    forward    per chunk of tokens: logits ─▶ their max, sum of exponentials, the label's logit, logits dropped
               once: the tensor ranks' parts of the vocabulary are combined, two small all-reduces over [., N]
    backward   per chunk: logits again ─▶ their gradient ─▶ of hidden states and weight
               once: hidden-state gradients are summed over the tensor ranks

It costs one more product with the head's weight than keeping the logits, and holds [chunk, V] of them at a time where
keeping takes [N, V] twice (8 GiB for 8,192 tokens of a vocabulary of 131,072 in float32).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.distributed import ProcessGroup, ReduceOp, all_reduce


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
    return _LabelLogprobs.apply(hidden_NH, weight_VH, labels_N, temperature, chunk, group, with_entropy)


class _LabelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, labels_N, temperature, chunk, group, with_entropy):
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        max_N, sum_N, label_N, dot_N = hidden_NH.new_zeros((4, len(labels_N)), dtype=dtype)
        for part in _chunks(len(labels_N), chunk):
            logits_CV = _logits(hidden_NH[part], weight_VH, temperature, dtype)
            columns_C1, here_C = _columns(labels_N[part], weight_VH, group)
            max_N[part] = logits_CV.amax(1)
            label_N[part] = logits_CV.gather(1, columns_C1)[:, 0] * here_C
            exp_CV = (logits_CV - max_N[part, None]).exp_()
            sum_N[part] = exp_CV.sum(1)
            if with_entropy:
                dot_N[part] = torch.linalg.vecdot(exp_CV, logits_CV)
        if group is not None:
            max_N, sum_N, label_N, dot_N = _combine(max_N, sum_N, label_N, dot_N, group)
        logsumexp_N = max_N + sum_N.log()
        entropies_N = logsumexp_N - dot_N / sum_N if with_entropy else None
        ctx.save_for_backward(hidden_NH, weight_VH, labels_N, logsumexp_N, entropies_N)
        ctx.temperature, ctx.chunk, ctx.group = temperature, chunk, group
        ctx.set_materialize_grads(False)  # None, not zeros, where no gradient flows
        return label_N - logsumexp_N, entropies_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logprobs_N, grad_entropies_N):
        hidden_NH, weight_VH, labels_N, logsumexp_N, entropies_N = ctx.saved_tensors
        if grad_logprobs_N is None:
            grad_logprobs_N = torch.zeros_like(logsumexp_N)
        # Summed over chunks and ranks at full precision.
        grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=logsumexp_N.dtype)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=logsumexp_N.dtype)
        for part in _chunks(len(labels_N), ctx.chunk):
            logits_CV = _logits(hidden_NH[part], weight_VH, ctx.temperature, logsumexp_N.dtype)
            probs_CV = (logits_CV - logsumexp_N[part, None]).exp_()
            pull_CV = grad_logprobs_N[part, None]
            if grad_entropies_N is not None:
                # dH/dz_j = -p_j (log p_j + H), with log p_j = z_j - logsumexp
                log_p_and_entropy_CV = logits_CV.add_((entropies_N - logsumexp_N)[part, None])
                pull_CV = log_p_and_entropy_CV.mul_(grad_entropies_N[part, None]).add_(pull_CV)
            columns_C1, here_C = _columns(labels_N[part], weight_VH, ctx.group)
            grad_CV = probs_CV.mul_(-pull_CV)
            grad_CV.scatter_add_(1, columns_C1, (grad_logprobs_N[part] * here_C)[:, None])
            grad_CV = grad_CV.div_(ctx.temperature).to(weight_VH.dtype)
            grad_hidden_NH[part] = (grad_CV @ weight_VH).to(logsumexp_N.dtype)
            _add_product(grad_weight_VH, grad_CV.T, hidden_NH[part])
        if ctx.group is not None and len(labels_N):
            all_reduce(grad_hidden_NH, group=ctx.group)
        return grad_hidden_NH.to(hidden_NH.dtype), grad_weight_VH.to(weight_VH.dtype), *[None] * 5


def _chunks(n_tokens: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n_tokens, chunk))


def _logits(hidden_CH: torch.Tensor, weight_VH: torch.Tensor, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    """Over the temperature; the product is in the model's dtype, as the sampler's is."""
    return (hidden_CH @ weight_VH.T).to(dtype).div_(temperature)


def _add_product(total_VH: torch.Tensor, left_VC: torch.Tensor, right_CH: torch.Tensor) -> None:
    """Add left @ right, without a second [V, H] where the dtypes allow it."""
    if total_VH.dtype == right_CH.dtype:
        total_VH.addmm_(left_VC, right_CH)
    else:
        total_VH += left_VC @ right_CH


def _columns(
    labels_C: torch.Tensor, weight_VH: torch.Tensor, group: ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each label stands in this rank's part, [C, 1], and whether it does, [C]; any column if it doesn't."""
    rows = len(weight_VH)
    columns_C = labels_C - (group.rank() if group is not None else 0) * rows
    if group is None:
        return columns_C[:, None], torch.ones_like(columns_C, dtype=torch.bool)
    return columns_C.clamp(0, rows - 1)[:, None], (columns_C >= 0) & (columns_C < rows)


def _combine(
    max_N: torch.Tensor, sum_N: torch.Tensor, label_N: torch.Tensor, dot_N: torch.Tensor, group: ProcessGroup
) -> tuple[torch.Tensor, ...]:
    """The ranks' parts as those of the whole vocabulary; the sums are of exponentials less the max."""
    if not len(max_N):
        return max_N, sum_N, label_N, dot_N
    whole_max_N = max_N.clone()
    all_reduce(whole_max_N, ReduceOp.MAX, group)
    scale_N = (max_N - whole_max_N).exp()
    sums = torch.stack([sum_N * scale_N, label_N, dot_N * scale_N])
    all_reduce(sums, group=group)
    return whole_max_N, *sums
