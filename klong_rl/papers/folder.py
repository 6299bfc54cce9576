"""A paper's task as a folder in PaperBench's format, whole or absent."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from klong_rl.judging.rubric import Rubric
from klong_rl.papers.code_links import blacklist
from klong_rl.papers.text import Paper


def write_folder(
    target: Path, paper: Paper, converted: Path, source: Path, addendum: str, rubric: Rubric, own: Sequence[str]
) -> None:
    """`converted` has the figures under assets/; a source that is a PDF is copied."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    config = {"id": target.name, "title": paper.title}
    (partial / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))
    (partial / "paper.md").write_text(paper.markdown, errors="replace")
    (partial / "addendum.md").write_text(f"{addendum.strip()}\n", errors="replace")
    (partial / "blacklist.txt").write_text(blacklist(own))
    (partial / "rubric.json").write_text(json.dumps(json.loads(rubric.to_json()), indent=2) + "\n")
    if source.suffix == ".pdf":
        shutil.copyfile(source, partial / "paper.pdf")
    if (converted / "assets").is_dir():
        shutil.copytree(converted / "assets", partial / "assets")
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
