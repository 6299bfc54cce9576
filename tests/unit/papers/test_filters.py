"""Which papers become tasks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.papers.config import QualityConfig
from klong_rl.papers.filters import Known, check_clean, check_new, check_quality
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper, abstract_of, containment, ngrams, title_of

RULES = QualityConfig()
ABSTRACT = " ".join(f"we measure thing {i} with care" for i in range(10))


def paper(title: str = "On Things", seed: int = 0, abstract: str = ABSTRACT, words: int = 500) -> Paper:
    text = " ".join(random.Random(seed).choices([f"word{c}{d}" for c in "abcdefgh" for d in "klmnopqr"], k=words))
    markdown = f"# {title}\n\n## Abstract\n\n{abstract}\n\n## Method\n\n{text}\n\n## Results\n\nGood.\n"
    return Paper(title=title, abstract=abstract_of(markdown), markdown=markdown)


def known(name: str, each: Paper) -> Known:
    return Known.of(name, each, RULES.ngram_words)


def test_a_good_paper_passes():
    check_quality(paper(), RULES)
    check_clean(known("a", paper()), [known("b", paper("Other", seed=1, abstract="short"))], RULES)
    check_new(known("a", paper()), [known("b", paper("Other", seed=1))], RULES)


@pytest.mark.parametrize(
    "made, reason",
    [
        (paper(words=10), "words, quality.least_words=300"),
        (paper(words=70_000), "quality.most_words=60000"),
        (paper(abstract="Too short."), "an abstract of 2 words, quality.least_abstract_words=30"),
        (Paper(title="t", abstract=ABSTRACT, markdown="word " * 400), "0 headings, quality.least_headings=3"),
        (Paper(title="t", abstract=ABSTRACT, markdown="# a\n# b\n# c\n" + "x 1234567 " * 400), "of it are letters"),
    ],
)
def test_each_rule_names_its_number(made, reason):
    with pytest.raises(Rejected, match=reason):
        check_quality(made, RULES)


def test_the_same_paper_twice_is_a_duplicate_whatever_its_title():
    first = known("first", paper())
    with pytest.raises(Rejected, match="the title of first"):
        check_new(known("b", paper("on THINGS!", seed=3)), [first], RULES)
    with pytest.raises(Rejected, match="of its 13-grams are in first"):
        check_new(known("b", paper("A Second Title")), [first], RULES)


def test_a_title_of_the_evaluation_set_contaminates():
    listed = Known.of("Deep Sets of Things", Paper(title="Deep Sets of Things", abstract="", markdown=""), 13)
    with pytest.raises(
        Rejected, match="contamination: its title is that of the evaluation paper 'Deep Sets of Things'"
    ):
        check_clean(known("a", paper("Deep sets of things.")), [listed], RULES)
    check_clean(known("a", paper("Shallow sums of numbers")), [listed], RULES)


def test_an_abstract_or_a_text_of_the_evaluation_set_contaminates():
    other = known("held", paper("Held Out", seed=9))
    with pytest.raises(
        Rejected, match="n-?grams of its abstract are in the evaluation paper 'held'|grams of its abstract"
    ):
        check_clean(known("a", paper("New", seed=4)), [other], RULES)
    with pytest.raises(Rejected, match="grams of its text"):
        check_clean(known("a", paper("New", seed=9, abstract="quite another abstract")), [other], RULES)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(2, 5))
def test_a_text_contains_its_own_parts_and_containment_is_a_share(tokens, n):
    text = " ".join(tokens)
    grams = ngrams(text, n)
    assert containment(grams, ngrams(f"x y z {text}", n)) == (
        1.0 if len(tokens) >= n else containment(grams, ngrams(f"x y z {text}", n))
    )
    assert 0.0 <= containment(grams, ngrams("c b a", n)) <= 1.0


def test_title_and_abstract_are_found_in_markdown():
    text = "# A *Title*\n\n**Abstract.** One\ntwo.\n\n## 1 Intro\n\nNo."
    assert title_of(text) == "A *Title*" and abstract_of(text).startswith("One two.")
    assert title_of("plain text\nmore") == "plain text" and abstract_of("# x\n\nno such") == ""
