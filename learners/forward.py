"""The forward pass of packed rows, by Megatron's own schedules, as far as the log-probs of the targets.

    tokens_R ──GPTModel without its head──▶ hidden_R1H ──the N places that predict a target──▶ label_logprobs ──▶ [N]

Only target positions are projected on the vocabulary, so logits never exist for a whole row.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from klong_rl.objectives import TargetTokens
from klong_rl.types import Window
from learners import context, cpu, gpu
from learners.batch import MicroBatch, collate
from learners.logprobs import label_logprobs
from learners.model import Model


class Batch:
    """A micro-batch as tensors on the device, plus the windows it was made of.

    Has each array of `MicroBatch` as a tensor, and `packing`, which tells attention where windows begin and end. Of the
    row's tokens and positions it has those of this context rank, [r]; so it has `own_places_n` in them, `own_labels_n`
    and `own_targets_n`, which of the N targets they are. One context rank has all.
    """

    def __init__(self, windows: Sequence[Window], pad_to: int, device: torch.device, window_pad: int = 1):
        from megatron.core.packed_seq_params import PackedSeqParams

        self.windows = windows
        arrays: MicroBatch = collate(windows, pad_to, window_pad)
        for field in dataclasses.fields(arrays):
            setattr(self, field.name, torch.from_numpy(getattr(arrays, field.name)).to(device))
        self.own_places_n, self.own_labels_n, self.own_targets_n = self.places_N, self.labels_N, None
        if window_pad > 1:
            self._take_own(arrays, device)
        longest = int(np.diff(arrays.starts_W1).max())
        self.packing = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=self.starts_W1,
            cu_seqlens_kv=self.starts_W1,
            # Padding is part of its window: it comes after all that could attend to it.
            cu_seqlens_q_padded=self.starts_W1 if window_pad > 1 else None,
            cu_seqlens_kv_padded=self.starts_W1 if window_pad > 1 else None,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        self.reference_logprobs_N: torch.Tensor | None = None
        self.learned_logprobs_N: torch.Tensor | None = None  # of the training forward pass

    def _take_own(self, arrays: MicroBatch, device: torch.device) -> None:
        """Keep the tokens of this context rank."""
        from megatron.core import parallel_state

        ranks, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
        held_r = context.places(arrays.starts_W1, ranks, rank)
        local_R = np.full(len(arrays.tokens_R), -1)
        local_R[held_r] = np.arange(len(held_r))
        local_N = local_R[arrays.places_N]
        own_targets_n = np.flatnonzero(local_N >= 0)
        self.own_targets_n = torch.from_numpy(own_targets_n).to(device)
        self.own_places_n = torch.from_numpy(local_N[own_targets_n]).to(device)
        self.own_labels_n = self.labels_N[self.own_targets_n]
        held = torch.from_numpy(held_r).to(device)
        self.tokens_R, self.positions_R = self.tokens_R[held], self.positions_R[held]

    def targets(self, logprobs_N: torch.Tensor, entropies_N: torch.Tensor | None, version: int) -> TargetTokens:
        """What the objective sees, with the model's log-probs and entropies, at policy version `version`."""
        return TargetTokens(
            logprobs_N=logprobs_N,
            sampler_logprobs_N=self.sampler_logprobs_N,
            window_N=self.window_N,
            advantages_W=self.advantages_W,
            # Windows that were not sampled, as of demonstrations, are of no age.
            staleness_N=(version - self.versions_N).clamp(min=0),
            reference_logprobs_N=self.reference_logprobs_N,
            # A step makes one update, so the weights at its start are those of this very forward pass.
            proximal_logprobs_N=logprobs_N.detach(),
            entropies_N=entropies_N,
        )


def run(model: Model, batches: Sequence[Batch], read: Callable[..., Any], train: bool) -> list[Any]:
    """`read(hidden_R1H, gpt=, batch=)` of each micro-batch, on ranks of the last pipeline stage; empty on others.

    With `train`, `read` answers with (loss, weight, report) and the gradients are accumulated; the reports come back.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    for chunk in model.chunks:
        chunk.train(train)
    return get_forward_backward_func()(
        forward_step_func=partial(_forward, read=read),
        data_iterator=iter(batches),
        model=model.chunks,
        num_microbatches=len(batches),
        # With variable_seq_lengths the stages tell each other each micro-batch's shape.
        seq_length=len(batches[0].tokens_R),
        micro_batch_size=1,
        forward_only=not train,
        collect_non_loss_data=not train,
    )


def target_logprobs(
    hidden_R1H: torch.Tensor, gpt: torch.nn.Module, batch: Batch, temperature: float, with_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log p of each target and, if wanted, the entropy there; float32 [N], the same on all tensor and context ranks.

    Both are differentiable.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    shared = gpt.share_embeddings_and_output_weights
    weight_VH = gpt.shared_embedding_or_output_weight() if shared else gpt.output_layer.weight
    if gpt.config.sequence_parallel:
        # The hidden states' gradient comes whole from label_logprobs, so a rank only takes its part of it.
        hidden_R1H = gather_from_sequence_parallel_region(hidden_R1H, tensor_parallel_output_grad=False)
    found = label_logprobs(
        hidden_R1H[:, 0].index_select(0, batch.own_places_n).to(weight_VH.dtype),
        weight_VH,
        batch.own_labels_n,
        temperature,
        chunk=max(1, (gpu if weight_VH.is_cuda else cpu).LOGITS_AT_ONCE // len(weight_VH)),
        group=parallel_state.get_tensor_model_parallel_group() if gpt.config.tensor_model_parallel_size > 1 else None,
        with_entropy=with_entropy,
    )
    if batch.own_targets_n is None:
        return found
    whole = partial(
        context.sum_over_ranks,
        own_targets_n=batch.own_targets_n,
        count=len(batch.labels_N),
        group=parallel_state.get_context_parallel_group(),
    )
    return whole(found[0]), whole(found[1]) if with_entropy else None


def window_logprobs(batch: Batch, logprobs_N: torch.Tensor) -> dict[str, np.ndarray]:
    """Per window id the log-prob of each target token, float32 [T], aligned with `tokens_T`, 0.0 elsewhere."""
    answer = {}
    for window, own in zip(batch.windows, of_each_window(batch, logprobs_N), strict=True):
        answer[window.id] = np.zeros(len(window.tokens_T), np.float32)
        answer[window.id][window.targets_T == 1] = own
    return answer


def of_each_window(batch: Batch, logprobs_N: torch.Tensor) -> list[np.ndarray]:
    """What is known of each target, float32 [targets] of each window of the micro-batch, in host memory."""
    counts = [window.n_targets() for window in batch.windows]
    return [own.numpy() for own in logprobs_N.float().cpu().split(counts)]


def _forward(batches: Iterator[Batch], chunk: torch.nn.Module, read: Callable[..., Any]) -> tuple[torch.Tensor, Any]:
    from megatron.core.utils import unwrap_model

    batch, gpt = next(batches), unwrap_model(chunk)
    with _without_head(gpt):
        # No mask: attention is causal, and keeps to the windows that `packing` bounds.
        hidden_R1H = chunk(batch.tokens_R[None], batch.positions_R[None], None, packed_seq_params=batch.packing)
    return hidden_R1H, partial(read, gpt=gpt, batch=batch)


@contextlib.contextmanager
def _without_head(gpt: torch.nn.Module) -> Iterator[None]:
    """While inside, a GPTModel of the last stage ends with its last norm, as those of other stages end."""
    has_head, gpt.post_process = gpt.post_process, False
    try:
        yield
    finally:
        gpt.post_process = has_head
