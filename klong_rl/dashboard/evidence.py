"""What a verdict rests on, from RUN/judging: the signed record, and the contents that it names. Only reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from klong_rl.judging.record import Record
from klong_rl.judging.store import FOLDER, Damaged, Store, digest

MOST_CHARS = 200_000  # of one content


def find_record(run_dir: Path, episode: str, epoch: int, sha256: str) -> Record | None:
    """The record that a verdict names. None where it isn't kept, or isn't what was named."""
    path = run_dir / FOLDER / "records" / f"{quote(episode, safe='')}.e{epoch}.{sha256[:12]}.json"
    if not sha256 or not path.exists():
        return None
    data = path.read_bytes()
    return msgspec.json.decode(data, type=Record) if digest(data) == sha256 else None


def shown(record: Record) -> dict[str, Any]:
    """The record without the task, whose frame holds what agents must not see."""
    fields = msgspec.to_builtins(record)
    return {name: value for name, value in fields.items() if name != "task"}


def contents_of(record: Record) -> set[str]:
    """The hashes that may be asked for: what the reward read, ran, asked and kept."""
    named = [read.blob for read in record.reads] + [command.output for command in record.commands]
    named += [blob for call in record.calls for blob in (call.request, call.reply)] + list(record.kept.values())
    return {blob for blob in named if blob}


def content(run_dir: Path, blob: str) -> dict[str, Any]:
    """A content as text, at most MOST_CHARS of it, and how long it is; or the problem with it."""
    try:
        text = Store(run_dir).get(blob).decode(errors="replace")
    except Damaged as damaged:
        return {"problem": str(damaged)}
    return {"text": text[:MOST_CHARS], "chars": len(text)}
