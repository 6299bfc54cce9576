"""One episode for the page: from the archive and back, its time line, its pages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl import learned
from klong_rl.dashboard.text import TokenText, find_tokenizer, keep_tokenizer
from klong_rl.dashboard.trajectory import (
    Trained,
    Trajectory,
    context_tokens,
    learned_of,
    left_at,
    read_archived,
    run_lengths,
    summary,
    turn_page,
)
from klong_rl.types import Turn
from klong_rl.windows import ContextRule
from tests.made_runs import RunMaker, Said

RULE = ContextRule(max_tokens=120, overlap_tokens=20, action_tokens=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    maker = RunMaker(tmp_path_factory.mktemp("run"))
    said = [Said(f"echo {i} ✓", f"echo {i}", f"{i} wörld", i % 2) for i in range(12)]
    group = maker.group("g", [said, said], rule=RULE)
    path = maker.files.write([group])
    maker.keep_learned(group, gap=0.25)
    return maker, group, path


def test_what_was_archived_is_read_back(made):
    _, group, path = made
    found = read_archived(path, "g-e1")
    [segment] = group.members[1].segments
    assert len(found.turns) == len(segment.turns) == 12
    for ours, theirs in zip(found.turns, segment.turns, strict=True):
        for name in ("action_A", "logprobs_A", "observation_O"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("index", "context_start", "versions", "command", "exit_code", "seconds"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert np.array_equal(found.prefix_P, segment.prefix_P)
    assert found.verdict == {"score": 0.5, "parts": {"solved": 0.5}, "evidence": {}}
    assert set(found.trained.windows) == {window.id for window in group.windows if window.episode == "g-e1"}
    assert set(found.trained.advantages) == {0.0} and found.trained.step == 1


def test_the_context_is_that_of_the_window(made):
    """A window is prefix and turns from its first on: what a turn saw is where its action begins in its window."""
    _, group, path = made
    found = read_archived(path, "g-e0")
    seen, windows = context_tokens(found), {window.id: window for window in group.windows}
    assert max(seen) <= RULE.max_tokens and any(turn.context_start for turn in found.turns)
    for i, turn in enumerate(found.turns):
        tokens_T = windows[found.trained.windows[i]].tokens_T
        assert np.array_equal(tokens_T[seen[i] : seen[i] + len(turn.action_A)], turn.action_A)


def test_what_left_the_context_and_when(made):
    turns = read_archived(made[2], "g-e0").turns
    for i, when in enumerate(left_at(turns)):
        without = [turn.index for turn in turns[i + 1 :] if turn.context_start > i]
        assert when == (without[0] if without else None)


def test_the_learner_s_log_probs_find_their_tokens(made):
    maker, group, path = made
    found = read_archived(path, "g-e1")
    kept = learned.read_learned(maker.run_dir / learned.FOLDER, 1, set(found.trained.windows))
    found.trained.learned = learned_of(found, kept)
    assert sorted(found.trained.learned) == list(range(12))
    for page in turn_page(found, 0, 12, lambda tokens: ["x"] * len(tokens)):
        assert page["gaps"] == pytest.approx([0.25] * page["action_tokens"])


def test_log_probs_that_do_not_fit_are_left_out(made):
    found = read_archived(made[2], "g-e1")
    assert learned_of(found, {"g-e1/w0": np.zeros(3, np.float32), "g-e7/w0": np.zeros(3, np.float32)}) == {}
    assert learned.read_learned(made[0].run_dir / learned.FOLDER, 9, {"g-e1/w0"}) == {}


def test_pieces_are_the_text_whatever_characters_tokens_cut(made):
    maker, _, path = made
    text = TokenText(find_tokenizer(maker.run_dir))
    turn = read_archived(path, "g-e0").turns[3]
    assert "".join(text.pieces(turn.action_A.tolist())) == "echo 3 ✓"
    assert len(text.pieces(turn.action_A.tolist())) == len(turn.action_A)
    assert TokenText(None).pieces([5, 6]) == ["[5]", "[6]"]


def test_the_tokenizer_is_kept_once(tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    model.mkdir(), run.mkdir()
    keep_tokenizer(run, model)
    assert find_tokenizer(run) is None
    (model / "tokenizer.json").write_text("1")
    keep_tokenizer(run, model)
    (model / "tokenizer.json").write_text("2")
    keep_tokenizer(run, model)
    assert find_tokenizer(run).read_text() == "1"


def test_a_page_cuts_what_is_long_and_says_how_long_it_is(made):
    found = read_archived(made[2], "g-e0")
    (page,) = turn_page(found, 11, 99, lambda tokens: ["é"] * len(tokens), tokens=4, chars=3)
    turn = found.turns[11]
    assert len(page["pieces"]) == len(page["logprobs"]) == 4 and page["action_tokens"] == len(turn.action_A)
    assert page["observation"]["text"] == "ééé" and page["observation"]["chars"] == len(turn.observation_O)
    assert page["command"] == {"text": "ech", "chars": 7}


def branch(index, follows, prompt=0, action=2, observation=0):
    return Turn(
        index=index, context_start=0, action_A=np.zeros(action, np.int32), logprobs_A=np.zeros(action, np.float32),
        versions=((1, action),), observation_O=np.zeros(observation, np.int32), follows=follows,
        prompt_T=np.zeros(prompt, np.int32), masked="not sampled here" if index == 1 else "",
    )  # fmt: skip


def test_a_tree_of_an_agent_from_outside():
    turns = [branch(0, -1, prompt=10), branch(1, 0, prompt=5), branch(2, 0, prompt=7), branch(3, -1, prompt=4)]
    line = summary(Trajectory(None, turns, Trained(["w0"] * 4, [0.5, None, 0.5, 0.5])))
    assert line["context"] == [10, 17, 19, 4]
    assert line["follows"] == [-1, 0, 0, -1] and line["left_at"] == [None] * 4
    assert line["masked"] == ["", "not sampled here", "", ""]
    assert len({len(column) for column in line.values()}) == 1


@given(st.lists(st.integers(0, 3), max_size=40))
def test_run_lengths_are_the_versions(versions):
    runs = run_lengths(np.array(versions, np.int32))
    assert [version for version, n in runs for _ in range(n)] == versions
    assert all(n > 0 for _, n in runs) and all(a[0] != b[0] for a, b in zip(runs, runs[1:], strict=False))
