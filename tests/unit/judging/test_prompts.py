"""What a judge is asked fits its context, and what it answers is a score or invalid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.judging.prompts import CHARS_A_TOKEN, cut, fit, leaf_messages, parse_score
from klong_rl.judging.rubric import from_tree
from klong_rl.judging.submission import Ranking, listed
from tests.unit.judging.trees import small

CODE = "Code Development"
ROOM_TOKENS = 2000
FILES = {
    "README.md": "How to reproduce.",
    "src/train.py": "def train():\n    learning_rate = 3\n",
    "src/plot.py": "draw the figure of the entropy\n" * 40,
    "data.csv": "1,2,3\n" * 2000,
}


def asked(files=FILES, paper="", order=None, room_tokens=ROOM_TOKENS) -> str:
    rubric = from_tree(small())
    leaf = rubric.leaves[0]
    order = order or Ranking(files).order(leaf.requirements)
    messages = leaf_messages(leaf, rubric.above(leaf), paper, files, order, room_tokens)
    assert [message["role"] for message in messages] == ["system", "user"]
    return "\n".join(message["content"] for message in messages)


def test_the_question_holds_the_requirement_its_place_and_the_files():
    text = asked()
    assert "what a1 asks for" in text and "- what root asks for\n  - what a asks for" in text
    assert "learning_rate = 3" in text and "file='src/train.py'" in text


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=30), st.text(max_size=3000)), st.text(max_size=9000)
)
def test_a_question_is_never_over_the_room(files, paper):
    text = asked(files={name: body * 9 for name, body in files.items()}, paper=paper * 3)
    assert len(text) <= ROOM_TOKENS * CHARS_A_TOKEN


def test_what_is_left_out_is_said():
    text = asked(files=FILES | {f"part{i}.csv": "9,9\n" * 4000 for i in range(9)})
    assert "characters in all, the middle is left out" in text and "Not shown: " in text and "part8.csv" in text


def test_files_are_whole_as_long_as_they_fit_and_none_takes_all_the_room():
    shown = fit({"a": "x" * 500, "b": "y" * 5000, "c": "z", "d": "u" * 5000}, ["a", "b", "c", "d"], 2000)
    assert shown["a"] == "x" * 500 and shown["c"] == "z"
    assert len(shown["b"]) < 750 and shown["b"].startswith("y") and shown["b"].endswith("y")
    assert fit({"a": "x" * 500, "b": "y" * 5000}, ["b", "a"], 300) == {}


def test_the_submission_can_not_close_its_own_markers():
    first, second = asked(files={"a": "x"}), asked(files={"a": "</marker>"})
    marker = [text.split(" file='a'>")[0].rsplit("<", 1)[1] for text in (first, second)]
    assert marker[0] != marker[1] and len(marker[0]) == 12


@pytest.mark.parametrize("most", [0, 10, 100])
def test_a_cut_text_keeps_beginning_and_end(most):
    assert len(cut("a" * 50 + "b" * 50, most)) <= most + 60
    assert cut("short", 10) == "short"


def test_files_are_ranked_by_what_the_requirement_is_about():
    assert Ranking(FILES).order("The learning rate of training is 3")[:2] == ["README.md", "src/train.py"]
    assert Ranking(FILES).order("A figure shows the entropy")[:2] == ["README.md", "src/plot.py"]
    assert Ranking({}).order("anything") == []
    assert Ranking({"trainLoop.py": "", "other.py": ""}).order("the train loop")[0] == "trainLoop.py"


def test_a_listing_gives_paths_near_the_top_first():
    output = "./src/train.py\n./with space.txt\n./broken\nname\n./README.md\n"
    assert listed(output) == ["README.md", "broken", "with space.txt", "src/train.py"]


@pytest.mark.parametrize(
    "reply, category, score",
    [
        ("It is there.\nScore: 1", CODE, 1),
        ("Score: 1 was my first thought.\nBut no.\n**Score: 0**\n\n", CODE, 0),
        ("`score = 1`", CODE, 1),
        ("**Score:** 1.0.", CODE, 1),
        ("Score: 0.4", "Subtree", 0.4),
    ],
)
def test_the_last_line_is_the_score(reply, category, score):
    assert parse_score(reply, category) == score


@pytest.mark.parametrize(
    "reply", ["", "yes", "Score: 1\nDone.", "Score: 2", "Score: -1", "Score: 0.5", "Score: 1/10", "Score: 0 or 1", "1"]
)
def test_a_reply_without_a_valid_last_line_is_invalid_and_no_zero(reply):
    with pytest.raises(ValueError, match="end with one line: Score: 1 if"):
        parse_score(reply, CODE)


def test_a_share_is_between_0_and_1():
    with pytest.raises(ValueError, match="share"):
        parse_score("Score: 1.2", "Subtree")
