"""Tokens as text, piece by piece, with the tokenizer that the run keeps. Needs no transformers, and no model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from klong_rl.durable import fsync

FOLDER = "tokenizer"  # of a run directory
FILE = "tokenizer.json"


def keep_tokenizer(run_dir: Path, model: Path) -> None:
    """Copy the tokenizer of `model` into the run directory, so that its trajectories can be read without the model."""
    source, kept = model / FILE, run_dir / FOLDER / FILE
    if kept.exists() or not source.exists():
        return
    kept.parent.mkdir(exist_ok=True)
    partial = kept.with_name(FILE + ".new")
    shutil.copyfile(source, partial)
    fsync(partial)
    partial.rename(kept)


def find_tokenizer(run_dir: Path) -> Path | None:
    """The tokenizer kept in the run directory, or that of its newest checkpoint."""
    kept = run_dir / FOLDER / FILE
    if kept.exists():
        return kept
    return max(run_dir.glob(f"checkpoints/step-*/hf/{FILE}"), default=None)


class TokenText:
    """`pieces` of tokens, by the tokenizer of a run; without one, their numbers."""

    def __init__(self, path: Path | None) -> None:
        self._tokenizer = None
        if path is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(path))

    @property
    def known(self) -> bool:
        return self._tokenizer is not None

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token adds. One that ends inside a character adds nothing, the one that ends it all."""
        if self._tokenizer is None:
            return [f"[{token}]" for token in tokens]
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._tokenizer, token) or "" for token in tokens]
