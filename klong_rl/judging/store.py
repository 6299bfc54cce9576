"""What verdicts rest on, kept by content in RUN/judging: files are written aside and renamed, so whole or absent.

    blobs/ab/SHA256     files that rewards read, tasks, rubrics, requests to the judge model and its raw replies:
                        compressed (zlib), named by the hash of the content
    replies/ab/SHA256   by the hash of a request, model and all, the hash of its valid reply, and of what the model
                        thought before it where it told

A request that was answered is never sent again, by whichever process of the run, and a verdict can be replayed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from klong_rl.failures import InfrastructureFailure

FOLDER = "judging"  # of a run directory
FAST = 1  # of zlib's levels: requests repeat a submission's files, and shrink to a quarter at once


class Damaged(InfrastructureFailure):
    """What is kept isn't what was written."""


class Kept(NamedTuple):
    """A valid reply, and what the model thought before it, "" if it didn't tell."""

    text: str
    thinking: str = ""


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: what hashes and signatures are made over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Store:
    """What is kept in one run directory. Blocking: each call reads or writes a small file."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / FOLDER

    def put(self, data: bytes) -> str:
        """Keep `data`, once; its hash."""
        name = digest(data)
        path = self._path("blobs", name)
        if not path.exists():
            write_whole(path, zlib.compress(data, FAST))
        return name

    def get(self, name: str) -> bytes:
        """Raises Damaged where it was changed or isn't kept any more."""
        path = self._path("blobs", name)
        try:
            data = zlib.decompress(path.read_bytes())
        except FileNotFoundError:
            raise Damaged(f"{path} is not kept any more") from None
        except zlib.error as error:
            raise Damaged(f"{path} was changed since it was written: {error}") from error
        if digest(data) != name:
            raise Damaged(f"{path} was changed since it was written: its hash is {digest(data)}")
        return data

    def put_text(self, text: str) -> str:
        """As `put`. A reply may hold half of a surrogate pair, which is no UTF-8: any text can be kept."""
        return self.put(text.encode(errors="surrogatepass"))

    def text(self, name: str) -> str:
        """As `get`."""
        return self.get(name).decode(errors="surrogatepass")

    def reply(self, request: str) -> Kept | None:
        """The valid reply to the request of this hash, if there is one. Raises Damaged."""
        path = self._path("replies", request)
        return Kept(*map(self.text, path.read_text().split())) if path.exists() else None

    def put_reply(self, request: str, kept: Kept) -> None:
        """Give this reply to the request from here on."""
        names = [self.put_text(kept.text)] + ([self.put_text(kept.thinking)] if kept.thinking else [])
        write_whole(self._path("replies", request), " ".join(names).encode())

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / name[:2] / name


def write_whole(path: Path, data: bytes) -> None:
    """The file is there whole, or not at all; for its owner alone, since tasks have secrets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    os.replace(partial, path)
