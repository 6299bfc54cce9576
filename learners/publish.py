"""Published weights: one safetensors file a version in shared memory, which the engines of the same host read.

A file appears under its name only when it is whole (written aside, then renamed). The last two are kept: an engine may
still be reading the one before the newest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

KEPT = 2


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

    def publish(self, version: int, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write HF-named `tensors` as `version`, dropping all but the last two; OSError if memory is short."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(".*.partial"):  # by a rank that was killed as it wrote: as large as the model
            left.unlink()
        partial = self.path / f".{os.getpid()}.partial"
        try:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial)
            partial.rename(self.file(version))
        finally:
            partial.unlink(missing_ok=True)
        for old in sorted(self.path.glob("v*.safetensors"))[:-KEPT]:
            old.unlink()
        return self.file(version)

    def remove(self) -> None:
        """Free the memory; nothing is left of the run's weights there."""
        if self.path.exists():
            shutil.rmtree(self.path)
