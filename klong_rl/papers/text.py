"""A paper as text: its title, abstract and headings, and the n-grams by which two papers are compared. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

_HEADING = re.compile(r"^#{1,6}\s+(.*\S)\s*$", re.MULTILINE)
_ABSTRACT = re.compile(r"^(?:#{1,6}\s*|\*\*)?abstract\b[\s.:*—-]*", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"[^\W_]+")


class Paper(msgspec.Struct, frozen=True, kw_only=True):
    """`markdown` is the whole text; figures are files beside it that it links to."""

    title: str
    abstract: str
    markdown: str
    pages: int = 0  # of a PDF; 0: unknown


def words(text: str) -> list[str]:
    """Lower-case words and numbers, what stands between them left out."""
    return _WORD.findall(text.lower())


def headings(markdown: str) -> list[str]:
    return _HEADING.findall(markdown)


def title_of(markdown: str) -> str:
    """The first heading, or the first line of text."""
    found = headings(markdown)
    return found[0] if found else next((line.strip() for line in markdown.splitlines() if line.strip()), "")


def abstract_of(markdown: str) -> str:
    """The text from the word Abstract to the next heading, "" if there is none."""
    match = _ABSTRACT.search(markdown)
    if match is None:
        return ""
    rest = markdown[match.end() :]
    following = _HEADING.search(rest)
    return " ".join((rest[: following.start()] if following else rest).split())


def ngrams(text: str, n: int) -> frozenset[int]:
    """Hashes of the runs of n words; of a shorter text, of all its words."""
    found = words(text)
    return frozenset(hash(tuple(found[i : i + n])) for i in range(max(1, len(found) - n + 1))) if found else frozenset()


def containment(a: frozenset[int], b: frozenset[int]) -> float:
    """Share of the smaller set that is in the other."""
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def likeness(a: Sequence[str], b: Sequence[str]) -> float:
    """Jaccard index of two lists of words.

    >>> likeness(["deep", "nets"], ["Deep".lower(), "sets"])
    0.3333333333333333
    """
    both, either = set(a) & set(b), set(a) | set(b)
    return len(both) / len(either) if either else 0.0
