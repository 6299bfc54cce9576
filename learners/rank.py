"""One rank of a learner group: a process that holds its shard of the model. Ray runs it as an actor (learners.group).

Every public method but `open_store` is a collective: all ranks must be called with the same method, in the same order.
A rank is told only which windows make its micro-batches; it fetches them from the buffer itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ray.util import get_node_ip_address

from klong_rl.buffer import BufferAddress
from klong_rl.objectives import Objective, build_objective
from klong_rl.types import Window
from learners import checkpoint, model, process, step
from learners.forward import Batch, window_logprobs
from learners.job import LearnerJob
from learners.kept import Kept
from learners.publish import Published, Weights
from learners.reference import Reference
from learners.source import BufferSource

Share = Sequence[Sequence[str]]  # the window ids of one rank: [micro-batch][window]


class Rank:
    """Made by `__init__`, part of a group after `setup`."""

    def __init__(self, rank: int, job: LearnerJob, weights: Weights, buffer: BufferAddress | None = None):
        self._rank, self._job, self._weights = rank, job, weights
        self._fetch = BufferSource(buffer) if buffer else None
        self._objectives: dict[str, Objective] = {
            "train": build_objective(job.learner.objective, job.learner.objective_options),
            "sft": build_objective("sft"),
        }
        self._step = -1  # the last one trained
        self._reference: Reference | None = None
        self._kept = Kept(Path(job.logprobs), rank) if job.logprobs else None

    def open_store(self) -> process.Address:
        """Serve the rendezvous from here (rank 0)."""
        host = get_node_ip_address()
        self._store = process.open_store(host, self._job)
        return host, self._store.port

    def setup(self, address: process.Address) -> int:
        """Join the group and build the model; returns this rank's place in the data-parallel dimension."""
        store = self._store if self._rank == 0 else process.connect_store(address, self._job)
        self._device = process.join(self._job, self._rank, store)
        self._model = model.build(self._job)
        self._saving = checkpoint.Saving()
        if "reference" in self._objectives["train"].needs:
            self._reference = Reference(self._model)
        from megatron.core import parallel_state

        return parallel_state.get_data_parallel_rank()

    def train_step(
        self, step_number: int, version: int, share: Share, windows: Mapping[str, Window] | None = None
    ) -> step.Sums:
        """One optimizer step on the share of every rank, fetched unless `windows` has them.

        `version` is the policy version of the weights as they are now. ValueError for a step that was trained already.
        """
        if step_number <= self._step:
            raise ValueError(f"step {step_number} was trained already: the weights are those of step {self._step}")
        started = time.perf_counter()
        batches = self._batches(share, windows)
        fetched = time.perf_counter()
        if self._reference:
            with self._reference.active():
                outputs = step.logprobs(self._model, batches, self._job.temperature)
            # Only the last pipeline stage has outputs, and only it needs them.
            for batch, logprobs_N in zip(batches, outputs, strict=False):
                batch.reference_logprobs_N = logprobs_N
        part = step.train_step(self._model, batches, self._objectives["train"], self._job.temperature, version)
        part["maxima"]["fetch_s"] = fetched - started
        self._step = step_number
        if self._kept:
            self._kept.keep(step_number, batches)
        return part

    def sft_step(self, share: Share, windows: Mapping[str, Window]) -> step.Sums:
        """One optimizer step of supervised fine-tuning, at temperature 1."""
        return step.train_step(self._model, self._batches(share, windows), self._objectives["sft"], 1.0, version=-1)

    def logprobs(
        self, temperature: float, share: Share, windows: Mapping[str, Window] | None = None
    ) -> dict[str, np.ndarray]:
        """Log-prob of each target token by window id, float32 [T]; empty where this rank doesn't hold the logits."""
        batches = self._batches(share, windows)
        outputs = step.logprobs(self._model, batches, temperature)
        answer: dict[str, np.ndarray] = {}
        for batch, logprobs_N in zip(batches, outputs, strict=False):
            answer |= window_logprobs(batch, logprobs_N)
        return answer

    def publish(self, version: int) -> Published | None:
        """Publish the weights for the engines of this host; rank 0 answers with what they are told."""
        tensors = model.export(self._model)
        if self._rank == 0:
            return self._weights.publish(version, tensors)
        for _ in tensors:
            pass
        return None

    def export(self) -> dict[str, torch.Tensor]:
        """HF-named whole tensors on rank 0, in host memory; nothing on the others."""
        tensors = {}
        for name, tensor in model.export(self._model):
            if self._rank == 0:
                tensors[name] = tensor.cpu()
        return tensors

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        if tensors := self.export():
            model.save_hf(self._job.model, folder, tensors)

    def begin_save(self, folder: Path) -> None:
        """Begin to write a checkpoint, FOLDER/megatron, and the weights beside it, FOLDER/hf.

        All of it as it is now: training may go on once this returns.
        """
        tensors = self.export()
        write_hf = partial(model.save_hf, self._job.model, folder / "hf", tensors) if tensors else None
        self._saving.begin(self._model, folder / "megatron", self._step, beside=write_hf)

    def finish_save(self, wait: bool) -> bool:
        """Whether all of it is written, on all ranks; `wait` until it is. FOLDER/megatron is durable then."""
        return self._saving.finish(wait)

    def load(self, folder: Path) -> int:
        """Become what was saved, bit for bit; returns the last step trained."""
        self._step = checkpoint.load(self._model, folder)
        return self._step

    def pid(self) -> int:
        """This process, for whoever watches or kills it."""
        return os.getpid()

    def _batches(self, share: Share, windows: Mapping[str, Window] | None) -> list[Batch]:
        if windows is None:
            if self._fetch is None:
                raise ValueError("this learner has no buffer to fetch from; pass the windows, or give it an address")
            ids = [window_id for ids in share for window_id in ids]
            windows = dict(zip(ids, self._fetch(ids), strict=True))
        pads = self._job.pad_to, self._device, self._job.window_pad
        return [Batch([windows[i] for i in ids], *pads) for ids in share]
