"""The papers that must never be trained on: PaperBench's by title, or a folder or list of the user's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from klong_rl.errors import UserError
from klong_rl.papers.collect import Source, collect
from klong_rl.papers.config import FactoryConfig
from klong_rl.papers.convert import convert
from klong_rl.papers.filters import Known
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper

TITLES = Path(__file__).with_name("paperbench_titles.txt")


async def evaluation_papers(config: FactoryConfig) -> list[Known]:
    """Of a list, the titles; of a folder, titles, abstracts and texts. Raises UserError for one that can't be read:
    a check that was asked for and doesn't happen is none."""
    path = Path(config.evaluation) if config.evaluation else TITLES
    n = config.quality.ngram_words
    if path.is_file():
        lines = (line.strip() for line in path.read_text().splitlines())
        titles = [line for line in lines if line and not line.startswith("#")]
        return [Known.of(title, Paper(title=title, abstract="", markdown=""), n) for title in titles]
    if not path.is_dir():
        raise UserError(f"evaluation={config.evaluation} is no folder of papers and no list of titles")
    known = []
    with tempfile.TemporaryDirectory() as scratch:
        for source in collect(path):
            if not isinstance(source, Source):
                raise UserError(f"evaluation={config.evaluation}: {source.reason}; remove it")
            try:
                paper = await convert(source.source, Path(scratch, source.name), config.convert)
            except Rejected as rejected:
                raise UserError(f"evaluation={config.evaluation}: {source.name}: {rejected}") from rejected
            known.append(Known.of(paper.title or source.name, paper, n))
    return known
