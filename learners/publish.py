"""Published weights: what `publish` returns is all that an engine needs to load them.

    WeightFolder   one safetensors file a version in shared memory; it appears under its name only when it is whole
    GpuWeights     tensors in the learner's GPU memory, which engines on the same GPU map into theirs (CUDA IPC)
    LinkedWeights  tensors on the learner's device, sent to engines elsewhere as they ask (learners.link)

The last two versions are kept: an engine that is just starting may still be reading the one before the newest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

KEPT = 2

Tensors = Iterable[tuple[str, torch.Tensor]]  # Hugging Face names, whole tensors
Published = dict[str, Any]  # the `update_info` of a weight update of vLLM's, whatever its backend


class Weights(Protocol):
    """Rank 0's way of publishing. Handed to the ranks as a pickle, so it opens nothing before the first publish."""

    def publish(self, version: int, tensors: Tensors) -> Published:
        """Make `tensors` readable as `version`; the last two versions are."""

    def remove(self) -> None:
        """Free what would outlive the ranks."""


@dataclass(frozen=True)
class WeightFolder:
    """The versions of one run. `path` belongs to the run alone: `remove` deletes it."""

    path: Path

    @classmethod
    def in_shared_memory(cls, run: str) -> WeightFolder:
        return cls(Path("/dev/shm") / f"klong-{run}")

    def file(self, version: int) -> Path:
        """Where `version` is, once it is published."""
        return self.path / f"v{version:08d}.safetensors"

    def publish(self, version: int, tensors: Tensors) -> Published:
        """Write `tensors` as `version`, dropping all but the last two; OSError if memory is short."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(".*.partial"):  # by a rank that was killed as it wrote: as large as the model
            left.unlink()
        partial = self.path / f".{os.getpid()}.partial"
        try:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors}, partial)
            partial.rename(self.file(version))
        finally:
            partial.unlink(missing_ok=True)
        for old in sorted(self.path.glob("v*.safetensors"))[:-KEPT]:
            old.unlink()
        return {"path": str(self.file(version))}

    def remove(self) -> None:
        """Free the memory; nothing is left of the run's weights there."""
        if self.path.exists():
            shutil.rmtree(self.path)


@dataclass
class GpuWeights:
    """Two copies of the weights in the memory of this process's GPU, written in turn. Empty until the first publish.

    The copies stay where they are for as long as the process lives, so handles given out remain valid, and neither the
    next training step nor the death of an engine that has mapped one touches them.
    """

    _copies: list[dict[str, torch.Tensor]] = field(default_factory=lambda: [{} for _ in range(KEPT)])
    _published: int = 0

    def publish(self, version: int, tensors: Tensors) -> Published:
        """Copy `tensors` (on this GPU); returns vLLM's description of an unpacked CUDA IPC update."""
        from torch.multiprocessing.reductions import reduce_tensor

        copy = self._copies[self._published % KEPT]
        for name, tensor in tensors:
            if name not in copy:
                copy[name] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            copy[name].copy_(tensor)
        # The engines read from streams of their own.
        torch.cuda.synchronize()
        self._published += 1
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return {
            "names": list(copy),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in copy.values()],
            "shapes": [list(tensor.shape) for tensor in copy.values()],
            "ipc_handles": [{gpu: reduce_tensor(tensor)[1]} for tensor in copy.values()],
        }

    def remove(self) -> None:
        """Nothing is left to free: the memory ends with the rank's process."""
