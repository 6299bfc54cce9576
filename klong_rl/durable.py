"""What is written is on the disk: fsync of files and of folders (a rename is durable once its folder is synced)."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Of one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Of a folder and all that is in it."""
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)
