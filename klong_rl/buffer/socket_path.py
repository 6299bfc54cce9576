"""Where the private server of a run directory listens: a Unix socket at a path that stays the same across launches."""

from __future__ import annotations

import os
import socket
import tempfile
import urllib.parse
from pathlib import Path

SUN_PATH_BYTES = 107  # what sockaddr_un holds on Linux, less the closing zero


def listening(folder: Path) -> str | None:
    """URL of the server that runs in `folder` now, if one does. Changes nothing."""
    path = _known_socket_path(folder)
    return None if path is None or is_deserted(path) else url_of(path)


def socket_path(folder: Path) -> Path:
    """`folder/redis.sock`; where that is too long for a socket, one in a short folder, noted in `folder/socket`."""
    if (known := _known_socket_path(folder)) is not None:
        return known
    short = Path(tempfile.mkdtemp(prefix="klong-")) / "redis.sock"
    (folder / "socket").write_text(str(short))
    return short


def _known_socket_path(folder: Path) -> Path | None:
    usual = folder / "redis.sock"
    if len(os.fsencode(usual)) <= SUN_PATH_BYTES:
        return usual
    note = folder / "socket"
    if note.exists():
        noted = Path(note.read_text())
        if noted.parent.is_dir() and noted.parent.stat().st_uid == os.getuid():
            return noted
    return None


def url_of(path: Path) -> str:
    return f"unix://{urllib.parse.quote(str(path))}"


def is_deserted(path: Path) -> bool:
    """True if nobody listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False
