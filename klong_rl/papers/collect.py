"""The papers of a folder: what is one, what belongs to it, and what it is known by.

DIR/name.pdf | name.md | name.tex | name.tar.gz      a paper; of several, the best source: LaTeX, Markdown, PDF
DIR/name/    paper.* (or any one paper), perhaps code/ and metadata.json ({"title", "code": [URL, ...], ...})
DIR/identifiers.txt                                  arXiv identifiers, fetched where there is a network
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klong_rl.errors import UserError
from klong_rl.papers.rejected import Rejected

SUFFIXES = (".tar.gz", ".tgz", ".tex", ".md", ".pdf")  # best first
IDENTIFIERS = "identifiers.txt"
CODE = "code"
METADATA = "metadata.json"
ASIDE = {"readme.md", IDENTIFIERS, METADATA}
MOST_CODE_FILES = 500
MOST_CODE_BYTES = 2_000_000
LEFT_OUT = {".git", "__pycache__", "node_modules", ".venv"}


@dataclass(frozen=True)
class Source:
    """`root` is all that belongs to the paper, `source` what of it is converted; `code` a folder or None."""

    name: str
    root: Path
    source: Path
    code: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NoPaper:
    """An entry of the folder that becomes nothing, and why."""

    name: str
    reason: str


def collect(folder: Path) -> list[Source | NoPaper]:
    """What stands in the folder, by name. Raises UserError if it is none, or empty."""
    if not folder.is_dir():
        raise UserError(f"papers={folder} is no folder; name one with a paper a file or a folder")
    found: dict[str, Source | NoPaper] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in ASIDE:
            continue
        each = _folder(path) if path.is_dir() else _file(path)
        known = found.get(each.name)
        if isinstance(known, Source) and (isinstance(each, NoPaper) or _rank(known.source) <= _rank(each.source)):
            continue
        found[each.name] = each
    if not found and not (folder / IDENTIFIERS).exists():
        raise UserError(f"papers={folder} has no paper; put in PDF, Markdown or LaTeX files, or {IDENTIFIERS}")
    return [found[name] for name in sorted(found)]


def identifiers(folder: Path) -> list[str]:
    """The lines of identifiers.txt; what is after a # is a remark."""
    path = folder / IDENTIFIERS
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in (line.split("#")[0].strip() for line in lines) if line]


def slug(name: str) -> str:
    """A name for folders and containers: lower-case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or "paper"


def _rank(path: Path) -> int:
    if path.is_dir():
        return -1
    return next(i for i, suffix in enumerate(SUFFIXES) if path.name.lower().endswith(suffix))


def _file(path: Path) -> Source | NoPaper:
    suffix = next((each for each in SUFFIXES if path.name.lower().endswith(each)), None)
    if suffix is None:
        return NoPaper(slug(path.name), f"collect: {path.name} is no paper; use one of {', '.join(SUFFIXES)}")
    return Source(slug(path.name[: -len(suffix)]), path, path)


def _folder(path: Path) -> Source | NoPaper:
    """Of several papers in it, paper.* or main.* by the order of SUFFIXES."""
    name = slug(path.name)
    papers = [p for p in path.iterdir() if p.is_file() and p.name.lower() not in ASIDE and _file_is_paper(p)]
    if not papers:
        return NoPaper(name, f"collect: {path.name}/ has no paper; use one of {', '.join(SUFFIXES)}")
    best = min(papers, key=lambda p: (p.name.split(".")[0] not in ("paper", "main"), _rank(p), p.name))
    try:
        metadata = json.loads((path / METADATA).read_text()) if (path / METADATA).exists() else {}
        if not isinstance(metadata, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        return NoPaper(name, f"collect: {path.name}/{METADATA} is no JSON object: {error}")
    code = path / CODE
    return Source(name, path, best, code if code.is_dir() else None, metadata)


def _file_is_paper(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def read_code(folder: Path | None) -> dict[str, str]:
    """Text by path of the paper's own code. Raises Rejected where it is too much."""
    files: dict[str, str] = {}
    size = 0
    for path in sorted(folder.rglob("*")) if folder else ():
        inside = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or LEFT_OUT & set(inside.parts):
            continue
        data = path.read_bytes()
        if b"\0" in data:
            continue
        size += len(data)
        files[inside.as_posix()] = data.decode(errors="replace")
        if len(files) > MOST_CODE_FILES or size > MOST_CODE_BYTES:
            raise Rejected(f"collect: code/ has over {MOST_CODE_FILES} files or {MOST_CODE_BYTES} bytes; remove data")
    return files


def digest_of(source: Source) -> str:
    """SHA-256 of all that belongs to the paper."""
    root, digest = source.root, hashlib.sha256()
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root)}\0{path.suffix}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()
