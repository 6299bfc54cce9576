"""A checkpoint that is on this machine already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klong_rl.errors import UserError


@dataclass(frozen=True)
class LocalFolder:
    """The Hugging Face folder at `path`, used as it is."""

    path: str = ""

    def build(self, cache: Path, texts: Sequence[str], seed: int) -> Path:
        folder = Path(self.path).expanduser()
        if not self.path or not folder.is_dir():
            raise UserError(f"model.source.path={self.path!r} is not a folder; give that of a Hugging Face checkpoint")
        return folder.resolve()
