"""The official code of a paper."""

from hypothesis import given
from hypothesis import strategies as st

from klong_rl.papers.code_links import blacklist, official, projects


def test_the_papers_own_code_is_told_from_what_it_mentions():
    text = "Our code is available at https://github.com/us/ours.git. " + "x " * 200
    text += "We compare with the baseline (github.com/them/theirs/tree/main). " + "x " * 200
    own, others = official(text.replace("We compare", "Compared"), given=())
    assert own == ["github.com/us/ours"] and others == ["github.com/them/theirs"]


def test_the_only_link_is_the_papers_own_and_metadata_is_believed():
    assert official("See www.github.com/a/b.")[0] == ["github.com/a/b"]
    assert official("none here", ["https://gitlab.com/c/d/"]) == (["gitlab.com/c/d"], [])


def test_other_hosts_and_bare_hosts_are_no_code():
    assert projects("https://example.org/a/b https://github.com/ https://arxiv.org/abs/1") == []


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    own, others = official(text)
    assert not set(own) & set(others)


def test_a_blacklist_is_never_empty():
    assert blacklist(["github.com/a/b"]) == "https://github.com/a/b\n" and blacklist([]) == "none\n"
