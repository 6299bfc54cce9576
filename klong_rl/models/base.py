"""Where a base checkpoint comes from: one of these, named in config as `model.source`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class ModelSource(Protocol):
    """Makes, or finds, a Hugging Face folder: config, safetensors, tokenizer with a chat template."""

    def build(self, cache: Path, texts: Sequence[str], seed: int) -> Path:
        """The folder of the checkpoint, made under `cache` unless it is there. `texts` are samples of the task family.

        Raises UserError, with the remedy, for a checkpoint that can't be had.
        """
