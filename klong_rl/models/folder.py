"""Model folders are whole or absent: written aside, renamed when complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_or_absent(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block succeeds, and nothing when it fails.

    Where `folder` has come to be meanwhile, made by another process, that one stays: somebody may be reading it.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
