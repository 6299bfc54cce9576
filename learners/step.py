"""Forward, backward and update of one optimizer step, by Megatron's own schedules.

    collate ──▶ forward (logits) ──▶ log-probs of labels ──▶ objective ──▶ backward   once per micro-batch
    sum gradients over micro-batches and data ranks, divide by the summed weight ──▶ clip ──▶ AdamW   once per step

Log-probs are vocabulary-parallel (each tensor rank holds a part of the logits), float32, at the sampler's temperature.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from klong_rl.objectives import Objective, TargetTokens
from klong_rl.types import Window
from learners.batch import MicroBatch, collate
from learners.model import Model

Sums = dict[str, dict[str, float]]  # {"sums": ..., "maxima": ...}: how each number is merged over ranks


class Batch:
    """A micro-batch as tensors on the device, plus what it was made of."""

    def __init__(self, windows: Sequence[Window], pad_to: int, device: torch.device):
        self.windows = windows
        arrays: MicroBatch = collate(windows, pad_to)
        self.tokens_BT, self.positions_BT, self.labels_BT, self.mask_BT, self.sampler_logprobs_BT, self.versions_BT = (
            torch.tensor(getattr(arrays, name)).to(device)
            for name in ("tokens_BT", "positions_BT", "labels_BT", "mask_BT", "sampler_logprobs_BT", "versions_BT")
        )
        self.advantages_B = torch.from_numpy(arrays.advantages_B).to(device)
        self.reference_logprobs_BT: torch.Tensor | None = None

    def targets(self, logprobs_BT: torch.Tensor, version: int) -> TargetTokens:
        """What the objective sees, with the model's log-probs, at policy version `version`."""
        picked_BT = self.mask_BT > 0
        reference_BT = self.reference_logprobs_BT
        return TargetTokens(
            logprobs_N=logprobs_BT[picked_BT],
            sampler_logprobs_N=self.sampler_logprobs_BT[picked_BT],
            window_N=picked_BT.nonzero()[:, 0],
            advantages_W=self.advantages_B,
            # Windows that were not sampled, as of demonstrations, are of no age.
            staleness_N=(version - self.versions_BT[picked_BT]).clamp(min=0),
            reference_logprobs_N=None if reference_BT is None else reference_BT[picked_BT],
        )


def label_logprobs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor, temperature: float) -> torch.Tensor:
    """log p(label) in float32, [B, T]. `logits_BTV` is this tensor rank's part of the vocabulary; it is overwritten."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    if temperature != 1.0:
        logits_BTV = logits_BTV / temperature
    return -vocab_parallel_cross_entropy(logits_BTV.float(), labels_BT)


def train_step(model: Model, batches: Sequence[Batch], objective: Objective, temperature: float, version: int) -> Sums:
    """One optimizer step; returns this rank's share of the metrics (empty sums where it doesn't hold the logits)."""
    start = time.perf_counter()
    for chunk in model.chunks:
        chunk.zero_grad_buffer()
    model.optimizer.zero_grad()
    loss = partial(_loss, objective=objective, temperature=temperature, version=version)
    outputs = _run(model, batches, loss, train=True)
    forwarded = time.perf_counter()
    # Before the update, so that the first step of a warm-up isn't taken at a learning rate of 0.
    model.scheduler.step(increment=1)
    updated, grad_norm, _ = model.optimizer.step()
    if not updated:
        raise FloatingPointError(f"the optimizer refused the step: gradient norm {grad_norm}")
    maxima = {
        "grad_norm": float(grad_norm),
        "learning_rate": float(model.optimizer.param_groups[0]["lr"]),
        "forward_backward_s": forwarded - start,
        "optimizer_s": time.perf_counter() - forwarded,
    }
    return _collect(outputs, maxima)


@torch.no_grad()
def logprobs(model: Model, batches: Sequence[Batch], temperature: float) -> list[torch.Tensor]:
    """log p of each label, [B, T] per micro-batch; an empty list on ranks that don't hold the last pipeline stage."""

    def read(logits_BTV: torch.Tensor, batch: Batch, non_loss_data: bool) -> torch.Tensor:
        return label_logprobs(logits_BTV, batch.labels_BT, temperature)

    return _run(model, batches, read, train=False)


def _run(model: Model, batches: Sequence[Batch], loss: Callable[..., Any], train: bool) -> list[Any]:
    from megatron.core.pipeline_parallel import get_forward_backward_func

    for chunk in model.chunks:
        chunk.train(train)
    return get_forward_backward_func()(
        forward_step_func=partial(_forward, loss=loss),
        data_iterator=iter(batches),
        model=model.chunks,
        num_microbatches=len(batches),
        # With variable_seq_lengths the stages tell each other each micro-batch's shape.
        seq_length=batches[0].tokens_BT.shape[1],
        micro_batch_size=batches[0].tokens_BT.shape[0],
        forward_only=not train,
        collect_non_loss_data=not train,
    )


def _forward(batches: Iterator[Batch], chunk: torch.nn.Module, loss: Callable[..., Any]) -> tuple[torch.Tensor, Any]:
    batch = next(batches)
    # No mask: attention is causal, and what is right of a row's end is in no target's context.
    return chunk(batch.tokens_BT, batch.positions_BT, None), partial(loss, batch=batch)


def _loss(
    logits_BTV: torch.Tensor, *, batch: Batch, objective: Objective, temperature: float, version: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, dict[str, Any]]]:
    tokens = batch.targets(label_logprobs(logits_BTV, batch.labels_BT, temperature), version)
    result = objective(tokens)
    logprobs_N = tokens.logprobs_N.detach()
    # Only tokens that the current weights sampled: on these, learner and sampler should agree to rounding.
    current_N = batch.versions_BT[batch.mask_BT > 0] == version
    gap_N = (logprobs_N - tokens.sampler_logprobs_N).abs() * current_N
    sums = {
        **result.sums,
        "loss_sum": result.loss_sum.detach(),
        "weight": result.weight.detach(),
        "action_tokens": len(logprobs_N),
        "windows": len(batch.windows),
        # Of the sampled tokens, so an estimate of the policy's entropy that costs nothing.
        "entropy_estimate": -logprobs_N.sum(),
        "gap_sum": gap_N.sum(),
        "gap_tokens": current_N.sum(),
    }
    # A 0 is appended: a micro-batch may have no target.
    report = {"sums": sums, "maxima": {"logprob_gap_max": torch.nn.functional.pad(gap_N, (0, 1)).max()}}
    return result.loss_sum, result.weight.to(torch.int), report


def _collect(reports: Sequence[dict[str, dict[str, Any]]], maxima: dict[str, float]) -> Sums:
    """This rank's micro-batches as one record. Tensor ranks hold the same numbers, so only the first one has sums."""
    from megatron.core import parallel_state

    if parallel_state.get_tensor_model_parallel_rank() > 0:
        reports = []
    floats = [
        {kind: {name: float(value) for name, value in values.items()} for kind, values in report.items()}
        for report in reports
    ]
    return _add([*floats, {"sums": {}, "maxima": maxima}])


def _add(parts: Sequence[Sums]) -> Sums:
    sums: dict[str, float] = {}
    maxima: dict[str, float] = {}
    for part in parts:
        for name, value in part["sums"].items():
            sums[name] = sums.get(name, 0.0) + value
        for name, value in part["maxima"].items():
            maxima[name] = max(maxima.get(name, value), value)
    return {"sums": sums, "maxima": maxima}


def merge(parts: Sequence[Sums]) -> dict[str, float]:
    """All ranks' records as the metrics of the step: means over target tokens, but for counts, maxima and the loss."""
    whole = _add(parts)
    sums = whole["sums"]
    tokens, gap_tokens = sums.pop("action_tokens"), sums.pop("gap_tokens")
    metrics = {
        "loss": sums.pop("loss_sum") / max(sums.pop("weight"), 1.0),
        "action_tokens": tokens,
        "windows": sums.pop("windows"),
        "logprob_gap_mean": sums.pop("gap_sum") / max(gap_tokens, 1.0),
        "logprob_gap_tokens": gap_tokens,
        **whole["maxima"],
    }
    return metrics | {name: value / max(tokens, 1.0) for name, value in sums.items()}


def window_logprobs(batch: Batch, logprobs_BT: torch.Tensor) -> dict[str, np.ndarray]:
    """Per window id the log-prob of each target token, float32 [T], aligned with `tokens_T`, 0.0 elsewhere."""
    answer = {}
    for row, window in enumerate(batch.windows):
        logprobs_T = np.zeros(len(window.tokens_T), np.float32)
        logprobs_T[1:] = logprobs_BT[row, : len(window.tokens_T) - 1].float().cpu().numpy()
        answer[window.id] = logprobs_T * window.targets_T
    return answer
