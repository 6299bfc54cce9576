"""What log-probs need of a chunk of logits, and the gradient that goes back into it.

    statistics   max, sum of exponentials less the max, the label's logit, and what an entropy needs: [C] each
    gradient     of loss with respect to the logits, [C, V], in their place where dtypes allow it

Here in plain torch; learners.softmax_gpu has the same two for a GPU, in one pass over the logits each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Statistics(NamedTuple):
    """Of the logits over the temperature, z: [C] each. A rank of several holds its part of the vocabulary."""

    max_C: torch.Tensor
    sum_C: torch.Tensor  # of exp(z - max)
    label_C: torch.Tensor  # z of the label, 0 where another rank holds it
    dot_C: torch.Tensor  # of exp(z - max) with z; 0 unless asked for


class Pull(NamedTuple):
    """What the loss pulls on at each token: [C] each."""

    logsumexp_C: torch.Tensor
    grad_logprobs_C: torch.Tensor
    entropies_C: torch.Tensor | None = None  # None: entropies are not differentiated
    grad_entropies_C: torch.Tensor | None = None


def statistics(logits_CV: torch.Tensor, columns_C: torch.Tensor, temperature: float, with_dot: bool) -> Statistics:
    """`columns_C` (int64): where each label stands, -1 where another rank holds it. The logits are left as they are."""
    z_CV = _scaled(logits_CV, temperature)
    max_C = z_CV.amax(1)
    label_C = z_CV.gather(1, columns_C.clamp(min=0)[:, None])[:, 0] * (columns_C >= 0)
    exp_CV = (z_CV - max_C[:, None]).exp_()
    dot_C = torch.linalg.vecdot(exp_CV, z_CV) if with_dot else torch.zeros_like(max_C)
    return Statistics(max_C, exp_CV.sum(1), label_C, dot_C)


def gradient(logits_CV: torch.Tensor, columns_C: torch.Tensor, temperature: float, pull: Pull) -> torch.Tensor:
    """Of the dtype of the logits, whose memory it may take.

    d log p(label) / dz_j = [j is the label] - p_j;  dH / dz_j = -p_j (log p_j + H), with log p_j = z_j - logsumexp
    """
    z_CV = _scaled(logits_CV, temperature)
    probs_CV = (z_CV - pull.logsumexp_C[:, None]).exp_()
    pull_CV = pull.grad_logprobs_C[:, None]
    if pull.entropies_C is not None:
        log_p_and_entropy_CV = z_CV + (pull.entropies_C - pull.logsumexp_C)[:, None]
        pull_CV = log_p_and_entropy_CV.mul_(pull.grad_entropies_C[:, None]).add_(pull_CV)
    grad_CV = probs_CV.mul_(-pull_CV)
    grad_CV.scatter_add_(1, columns_C.clamp(min=0)[:, None], (pull.grad_logprobs_C * (columns_C >= 0))[:, None])
    return grad_CV.div_(temperature).to(logits_CV.dtype)


def _scaled(logits_CV: torch.Tensor, temperature: float) -> torch.Tensor:
    """A copy in float32 (float64 of float64)."""
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)) / temperature
