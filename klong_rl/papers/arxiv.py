"""LaTeX source, or else the PDF, of a paper by its arXiv identifier, where there is a network."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import httpx

from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.store import write_whole
from klong_rl.papers.collect import slug
from klong_rl.papers.rejected import Rejected

FETCH_S = 60.0
MOST_BYTES = 200_000_000
_IDENTIFIER = re.compile(r"(?:arxiv:)?((?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?)", re.IGNORECASE)


async def fetch(identifier: str, folder: Path, url: str) -> Path:
    """The file, fetched once. Raises Rejected for no identifier or no paper, InfrastructureFailure for no network."""
    match = _IDENTIFIER.fullmatch(identifier)
    if match is None:
        raise Rejected(f"collect: {identifier!r} is no arXiv identifier, such as 2602.17547")
    name = f"arxiv-{slug(match[1])}"
    known = [path for path in folder.glob(f"{name}.*") if not path.name.startswith(".")]
    if known:
        return known[0]
    try:
        async with httpx.AsyncClient(timeout=FETCH_S, follow_redirects=True) as client:
            answer = await client.get(f"{url.rstrip('/')}/e-print/{match[1]}")
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise InfrastructureFailure(f"{url} can't be reached for {identifier}: {what}") from error
    if answer.status_code == 404:
        raise Rejected(f"collect: {url} has no paper {identifier}")
    if answer.status_code != 200:
        raise InfrastructureFailure(f"{url} answers HTTP {answer.status_code} for {identifier}")
    path = folder / f"{name}{_suffix(answer.content)}"
    data = gzip.decompress(answer.content) if path.suffix == ".tex" else answer.content
    write_whole(path, data[:MOST_BYTES])
    return path


def _suffix(data: bytes) -> str:
    """What arXiv sends is a PDF, an archive, or one gzipped file of LaTeX."""
    if data.startswith(b"%PDF"):
        return ".pdf"
    if data.startswith(b"\x1f\x8b"):
        inside = gzip.decompress(data)
        return ".tar.gz" if inside[257:262] == b"ustar" else ".tex"
    raise Rejected("collect: what arXiv sent is neither PDF nor gzipped source")
