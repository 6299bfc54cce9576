"""Which papers become tasks: stated rules, each with the number that a refusal names. Pure.

quality         length, abstract, headings, prose
duplicates      the same title, or n-grams in common, with an earlier paper of the batch
contamination   title, abstract or n-grams in common with an evaluation paper: training on it would spoil the benchmark
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from klong_rl.judging.store import canonical, digest
from klong_rl.papers.config import QualityConfig
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper, containment, headings, likeness, ngrams, words


@dataclass(frozen=True)
class Known:
    """A paper to compare with; `abstract` and `body` may be empty, then only what is there is compared.

    `key` is a digest of its text: n-grams are hashes of this process.
    """

    name: str
    key: str
    title: tuple[str, ...]  # words
    abstract: frozenset[int]
    body: frozenset[int]

    @classmethod
    def of(cls, name: str, paper: Paper, n: int) -> Known:
        body = ngrams(paper.markdown, n) if paper.markdown else frozenset()
        key = digest(canonical([paper.title, paper.abstract, paper.markdown]))
        return cls(name, key, tuple(words(paper.title)), ngrams(paper.abstract, n), body)


def check_quality(paper: Paper, rules: QualityConfig) -> None:
    """Raises Rejected."""
    n_words, n_abstract = len(words(paper.markdown)), len(words(paper.abstract))
    n_headings = len(headings(paper.markdown))
    if n_words < rules.least_words:
        raise Rejected(f"quality: {n_words} words, quality.least_words={rules.least_words}")
    if n_words > rules.most_words:
        raise Rejected(f"quality: {n_words} words, quality.most_words={rules.most_words}")
    if n_abstract < rules.least_abstract_words:
        wanted = f"quality.least_abstract_words={rules.least_abstract_words}"
        raise Rejected(f"quality: an abstract of {n_abstract} words, {wanted}")
    if n_headings < rules.least_headings:
        raise Rejected(f"quality: {n_headings} headings, quality.least_headings={rules.least_headings}")
    solid = [character for character in paper.markdown if not character.isspace()]
    letters = sum(character.isalpha() for character in solid) / len(solid)
    if letters < rules.least_letters:
        raise Rejected(f"quality: {letters:.0%} of it are letters, quality.least_letters={rules.least_letters:g}")


def check_new(paper: Known, earlier: Iterable[Known], rules: QualityConfig) -> None:
    """Raises Rejected for a duplicate of one of `earlier`."""
    for other in earlier:
        if paper.title == other.title:
            raise Rejected(f"duplicate: the title of {other.name}")
        share = containment(paper.body, other.body)
        if share >= rules.duplicate:
            raise Rejected(
                f"duplicate: {share:.0%} of its {rules.ngram_words}-grams are in {other.name}, quality.duplicate="
                f"{rules.duplicate:g}"
            )


def check_clean(paper: Known, evaluation: Iterable[Known], rules: QualityConfig) -> None:
    """Raises Rejected for one that an evaluation paper would be known from."""
    for other in evaluation:
        alike = likeness(paper.title, other.title)
        if alike >= rules.title_likeness:
            raise Rejected(f"contamination: its title is that of the evaluation paper {other.name!r} ({alike:.0%})")
        for what, mine, theirs in (
            ("abstract", paper.abstract, other.abstract),
            ("abstract", paper.body, other.abstract),
            ("text", paper.body, other.body),
        ):
            share = containment(mine, theirs)
            if share >= rules.contaminated:
                raise Rejected(
                    f"contamination: {share:.0%} of the {rules.ngram_words}-grams of its {what} are in the evaluation "
                    f"paper {other.name!r}, quality.contaminated={rules.contaminated:g}"
                )
