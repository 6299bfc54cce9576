"""What `klong_rl.papers.convert` starts; it imports little, so that it starts at once.

python -m klong_rl.papers.converter SOURCE OUT MOST_PAGES MEMORY_MB     writes OUT/result.json, OUT/assets/*
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import msgspec

from klong_rl.papers.latex import latex_to_markdown, main_file
from klong_rl.papers.pdf import pdf_to_markdown
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper, abstract_of, title_of

RESULT = "result.json"
MOST_SOURCE_BYTES = 200_000_000  # unpacked, of a LaTeX archive
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg"}
_PICTURE = re.compile(r"(!\[[^\]]*\]\()([^)\s]+)(\))")


class Result(msgspec.Struct, kw_only=True):
    """`problem` is why there is no paper."""

    paper: Paper | None = None
    problem: str = ""


def paper_of(source: Path, assets: Path, most_pages: int) -> Paper:
    """By what `source` is: a folder with LaTeX, an archive of one, PDF or Markdown. Raises Rejected."""
    if source.is_dir():
        main = main_file(source)
        if main is None:
            raise Rejected("convert: no file of it has a \\documentclass")
        return latex_to_markdown(source, main, assets)
    if source.name.endswith((".tar.gz", ".tgz")):
        with tempfile.TemporaryDirectory() as folder:
            _unpack(source, Path(folder))
            return paper_of(Path(folder), assets, most_pages)
    if source.suffix == ".pdf":
        return pdf_to_markdown(source, assets, most_pages)
    if source.suffix == ".tex":
        return latex_to_markdown(source.parent, source, assets)
    return _markdown(source, assets)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            size = sum(member.size for member in members)
            if size > MOST_SOURCE_BYTES:
                raise Rejected(f"convert: the archive unpacks to {size} bytes, more than {MOST_SOURCE_BYTES}")
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Rejected(f"convert: not an archive that can be unpacked: {error}") from error


def _markdown(source: Path, assets: Path) -> Paper:
    """Markdown as it is; pictures that it links to beside it are copied."""
    text = source.read_text(errors="replace")
    if not text.strip():
        raise Rejected("convert: the file has no text")

    def linked(match: re.Match[str]) -> str:
        path = (source.parent / match[2]).resolve()
        inside = path.is_relative_to(source.parent.resolve()) and path.suffix.lower() in PICTURES
        if not inside or not path.is_file():
            return match[0]
        assets.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, assets / path.name)
        return f"{match[1]}assets/{path.name}{match[3]}"

    markdown = _PICTURE.sub(linked, text)
    return Paper(title=title_of(markdown), abstract=abstract_of(markdown), markdown=markdown)


def main(source: str, out: str, most_pages: str, memory_mb: str) -> None:
    """Write the paper, or why there is none."""
    limit = int(memory_mb) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    folder = Path(out)
    shutil.rmtree(folder / "assets", ignore_errors=True)
    try:
        result = Result(paper=paper_of(Path(source), folder / "assets", int(most_pages)))
    except Rejected as rejected:
        result = Result(problem=str(rejected))
    partial = folder / f".{RESULT}"
    partial.write_bytes(msgspec.json.encode(result))
    os.replace(partial, folder / RESULT)


if __name__ == "__main__":
    main(*sys.argv[1:])
