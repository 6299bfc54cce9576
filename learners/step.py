"""One optimizer step: micro-batches forward and backward, then the update.

    collate ──▶ forward ──▶ log-probs of targets (learners.forward) ──▶ objective ──▶ backward   once per micro-batch
    sum gradients over micro-batches and data ranks, divide by the summed weight ──▶ clip ──▶ AdamW   once per step

Log-probs are at the sampler's temperature.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from klong_rl.objectives import Objective
from klong_rl.objectives.report import GAP_HISTOGRAM, histogram, summarize
from learners.forward import Batch, run, target_logprobs
from learners.model import Model

Sums = dict[str, dict[str, Any]]  # {"sums": ..., "maxima": ...}: how each number, or array, is merged over ranks


def train_step(model: Model, batches: Sequence[Batch], objective: Objective, temperature: float, version: int) -> Sums:
    """One optimizer step; returns this rank's share of the metrics (empty sums where it doesn't hold the logits)."""
    start = time.perf_counter()
    for chunk in model.chunks:
        chunk.zero_grad_buffer()
    model.optimizer.zero_grad()
    read = partial(_loss, objective=objective, temperature=temperature, version=version)
    outputs = run(model, batches, read, train=True)
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
    """log p of each target, [N] per micro-batch; an empty list on ranks that don't hold the last pipeline stage."""

    def read(hidden_R1H: torch.Tensor, gpt: torch.nn.Module, batch: Batch, non_loss_data: bool) -> torch.Tensor:
        logprobs_N, _ = target_logprobs(hidden_R1H, gpt, batch, temperature)
        return logprobs_N

    return run(model, batches, read, train=False)


def _loss(
    hidden_R1H: torch.Tensor,
    *,
    gpt: torch.nn.Module,
    batch: Batch,
    objective: Objective,
    temperature: float,
    version: int,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, dict[str, Any]]]:
    from megatron.core import parallel_state

    given = target_logprobs(hidden_R1H, gpt, batch, temperature, with_entropy="entropy" in objective.needs)
    tokens = batch.targets(*given, version)
    result = objective(tokens)
    logprobs_N = batch.learned_logprobs_N = tokens.logprobs_N.detach()
    # Only tokens that the current weights sampled: on these, learner and sampler should agree to rounding.
    current_N = batch.versions_N == version
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
        GAP_HISTOGRAM: histogram(gap_N, current_N),
    }
    # A 0 is appended: a micro-batch may have no target.
    report = {"sums": sums, "maxima": {"logprob_gap_max": torch.nn.functional.pad(gap_N, (0, 1)).max()}}
    # Context ranks work out the same loss, and each has the gradient of its own tokens: the weight counts once.
    weight = result.weight if parallel_state.get_context_parallel_rank() == 0 else torch.zeros_like(result.weight)
    return result.loss_sum, weight.to(torch.int), report


def _collect(reports: Sequence[dict[str, dict[str, Any]]], maxima: dict[str, float]) -> Sums:
    """This rank's micro-batches as one record. Tensor and context ranks hold the same numbers: only one has sums."""
    from megatron.core import parallel_state

    if parallel_state.get_tensor_model_parallel_rank() > 0 or parallel_state.get_context_parallel_rank() > 0:
        reports = []
    floats = [
        {kind: {name: _on_host(value) for name, value in values.items()} for kind, values in report.items()}
        for report in reports
    ]
    return _add([*floats, {"sums": {}, "maxima": maxima}])


def _on_host(value: Any) -> Any:
    """A number, or an array of float64 for a vector."""
    is_vector = isinstance(value, torch.Tensor) and value.dim() > 0
    return value.double().cpu().numpy() if is_vector else float(value)


def _add(parts: Sequence[Sums]) -> Sums:
    sums: dict[str, Any] = {}
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
    return metrics | summarize(sums, tokens)
