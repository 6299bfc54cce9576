"""The record of one verdict: all that it rests on, signed. RUN/judging/records/EPISODE.eEPOCH.HASH.json

Contents are kept in `klong_rl.judging.store` and named here by their hashes; the signature is an HMAC-SHA256 over the
record's canonical JSON, so neither the record nor what it names can be changed without notice by who lacks the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from klong_rl.errors import UserError
from klong_rl.judging.store import canonical, digest, write_whole

KEY_ENV = "KLONG_SIGNING_KEY"
LEAST_KEY_BYTES = 16


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A file that the reward read in the sandbox: its first `limit` bytes, by hash; "" where there was none."""

    path: str
    limit: int
    blob: str


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command that the reward ran, in the episode's sandbox or in a fresh one; `output` is a blob's hash."""

    command: str
    exit_code: int | None
    output: str
    timed_out: bool
    truncated: bool
    interrupted: bool
    is_fresh: bool


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A question to the judge model: about what (a rubric's leaf), and the blobs of the request and the raw reply.

    `problem` is why the reply was invalid, "" for one that was valid.
    """

    about: str
    request: str
    reply: str
    problem: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`at` is seconds since 1970. `task` and `kept` are blobs: the wire frame of the task; what the reward kept."""

    episode: str
    group: str
    stage: int
    purpose: str
    epoch: int
    outcome: str
    outcome_detail: str
    timeout_s: float
    max_turns: int
    group_size: int
    task: str
    reward: dict[str, Any]
    model: str  # of the judge, and the endpoint it was asked at; "" where it wasn't
    endpoint: str
    score: float
    parts: dict[str, float]
    evidence: dict[str, str]
    reads: list[Read]
    commands: list[Command]
    calls: list[Call]
    kept: dict[str, str]
    snapshot: str
    at: float
    signature: str = ""


def signing_key(file: str) -> bytes | None:
    """The key in `file`, or in the environment variable KEY_ENV; None where there is neither. Raises UserError."""
    if file:
        try:
            key = Path(file).read_bytes().strip()
        except OSError as error:
            raise UserError(f"judge.signing_key_file={file} can't be read: {error.strerror}") from error
    else:
        key = os.environ.get(KEY_ENV, "").encode()
        if not key:
            return None
    if len(key) < LEAST_KEY_BYTES:
        where = f"judge.signing_key_file={file}" if file else f"the environment variable {KEY_ENV}"
        raise UserError(f"{where}: a key of {len(key)} bytes is too short; use {LEAST_KEY_BYTES} or more random ones")
    return key


def signed(record: Record, key: bytes | None) -> Record:
    """The record with its signature; with "" where there is no key. As it is read back: a float that was given as 1
    is 1.0, so the signature is over what a reader sees."""
    bare = msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(record, signature="")), Record)
    return msgspec.structs.replace(bare, signature=_signature(bare, key) if key else "")


def is_signed_by(record: Record, key: bytes) -> bool:
    """Whether the signature is that of `key` over the record as it is."""
    bare = msgspec.structs.replace(record, signature="")
    return hmac.compare_digest(record.signature, _signature(bare, key))


def _signature(bare: Record, key: bytes) -> str:
    return hmac.new(key, canonical(msgspec.to_builtins(bare)), hashlib.sha256).hexdigest()


class Records:
    """The records in one folder. Blocking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: Record) -> str:
        """The SHA-256 of the file, which the verdict then names: only one of two that judged at once is believed."""
        data = canonical(msgspec.to_builtins(record))
        sha256 = digest(data)
        write_whole(self.folder / f"{quote(record.episode, safe='')}.e{record.epoch}.{sha256[:12]}.json", data)
        return sha256

    def all(self) -> tuple[list[tuple[Record, str]], list[str]]:
        """Every record with its file's SHA-256, by name; and what is wrong with the files that are none."""
        found, problems = [], []
        for path in sorted(self.folder.glob("*.json")):
            data = path.read_bytes()
            try:
                found.append((msgspec.json.decode(data, type=Record), digest(data)))
            except msgspec.DecodeError as error:
                problems.append(f"{path} is no record of a verdict: {error}")
        return found, problems
