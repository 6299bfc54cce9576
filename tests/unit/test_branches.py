"""Branches: whatever an agent asks, each action is a target once, after exactly the context it was sampled in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from klong_rl.branches import context_of, runs
from klong_rl.chain import BrokenChain, check, link
from klong_rl.types import EpisodeSpec, Task, Turn
from klong_rl.windows import split, trajectories, window_of_each

NOTHING_P = np.zeros(0, np.int32)
TASK = Task(id="t", family="f", instruction="Go.", image="none")
SPEC = EpisodeSpec(
    id="e", group="g", group_size=1, stage=1, purpose="train", task=TASK, timeout_s=1.0, max_turns=99
)  # fmt: skip


@st.composite
def episodes(draw) -> list[Turn]:
    """Any tree of turns, as an agent may ask for it, some of them masked. No token is there twice."""
    turns: list[Turn] = []
    fresh, previous = iter(range(10_000)), b""
    for index in range(draw(st.integers(1, 12))):
        follows = draw(st.integers(-1, index - 1))
        prompt_T = tokens(fresh, draw(st.integers(0 if follows >= 0 else 1, 3)))
        action_A = tokens(fresh, draw(st.integers(1, 3)))
        turns.append(
            Turn(
                index=index, context_start=index, action_A=action_A, logprobs_A=-action_A.astype(np.float32),
                versions=((index, len(action_A)),), observation_O=NOTHING_P, follows=follows,
                prompt_T=prompt_T, masked=draw(st.sampled_from(["", "", "", "its client went away"])),
            )
        )  # fmt: skip
        previous = link(previous, np.array(asked(turns, index), np.int32), action_A)
        turns[index] = replace(turns[index], chain=previous)
    return turns


def tokens(fresh, n: int) -> np.ndarray:
    return np.array([next(fresh) for _ in range(n)], np.int32)


def asked(turns: list[Turn], index: int) -> list[int]:
    """What turn `index` was given, by the words of klong_rl.types."""
    turn = turns[index]
    before = asked(turns, turn.follows) + turns[turn.follows].action_A.tolist() if turn.follows >= 0 else []
    return before + turn.prompt_T.tolist()


@given(episodes())
def test_each_action_is_a_target_once_in_the_context_it_was_sampled_in(turns):
    windows = {window.id: window for window in split(SPEC, NOTHING_P, turns, score=0.5)}
    targets = 0
    for turn, name in zip(turns, window_of_each(SPEC, turns), strict=True):
        if turn.masked:
            continue
        window, given = windows[name], asked(turns, turn.index)
        assert context_of(NOTHING_P, turns, turn.index).tolist() == given
        end = len(given) + len(turn.action_A)
        assert window.tokens_T[:end].tolist() == given + turn.action_A.tolist()
        assert window.targets_T[len(given) : end].all()
        assert window.logprobs_T[len(given) : end].tolist() == turn.logprobs_A.tolist()
        targets += len(turn.action_A)
    assert sum(window.n_targets() for window in windows.values()) == targets
    for window in windows.values():
        assert window.targets_T[-1] == 1, "nothing after the last target"
        assert (window.logprobs_T[window.targets_T == 0] == 0).all()
        mine = [(turn.index, len(turn.action_A)) for turn in turns if not turn.masked]
        assert [run for run in mine if run in window.versions] == list(window.versions), "in the order sampled"
        assert sum(count for _, count in window.versions) == window.n_targets()


@given(episodes())
def test_a_trajectory_of_a_run_has_the_targets_of_its_window(turns):
    wanted = {}
    for window in split(SPEC, NOTHING_P, turns):
        wanted[window.id] = window.tokens_T.tolist(), window.targets_T.tolist()
    for made in trajectories("e", turns):
        tokens_T = made.prefix_P.tolist() + made.tokens_T.tolist()
        targets_T = [0] * len(made.prefix_P) + made.agent_T.tolist()
        n = len(wanted[made.id][0])  # what follows the last target is left out of a window
        assert (tokens_T[:n], targets_T[:n]) == wanted.pop(made.id) and not any(targets_T[n:])
    assert not wanted


@given(episodes())
def test_a_run_grows_at_its_end_alone_and_no_turn_is_in_two(turns):
    found = runs(turns)
    assert sorted(index for run in found for index in run) == list(range(len(turns)))
    for run in found:
        assert [turns[index].follows for index in run[1:]] == run[:-1]
    assert [run[0] for run in found] == sorted(run[0] for run in found)


@given(episodes())
def test_no_window_could_have_been_part_of_another(turns):
    """As few windows as there can be: one begins only where its first turn goes on from no end of another."""
    ends: set[int] = set()
    for run in runs(turns):
        ends.add(run[-1])
        first = turns[run[0]]
        taken = any(turns[index].follows == first.follows for index in range(run[0]))
        assert first.follows == -1 or taken


@given(episodes(), st.data())
def test_any_change_of_what_was_given_or_sampled_is_noticed(turns, data):
    assert check("e", NOTHING_P, turns) == turns[-1].chain
    index = data.draw(st.integers(0, len(turns) - 1))
    name = data.draw(st.sampled_from([n for n in ("prompt_T", "action_A") if len(getattr(turns[index], n))]))
    turns[index] = replace(turns[index], **{name: getattr(turns[index], name) + 1})
    with pytest.raises(BrokenChain, match="episode e: turn"):
        check("e", NOTHING_P, turns)


@given(episodes(), st.data())
def test_a_turn_that_goes_on_from_another_than_it_did_is_noticed(turns, data):
    index = data.draw(st.integers(0, len(turns) - 1))
    other = data.draw(st.integers(-2, index).filter(lambda follows: follows != turns[index].follows))
    turns[index] = replace(turns[index], follows=other)
    with pytest.raises(BrokenChain, match=f"turn {index}"):
        check("e", NOTHING_P, turns)


def test_a_window_without_a_target_is_none():
    action_A = np.array([5], np.int32)
    turn = Turn(
        index=0, context_start=0, action_A=action_A, logprobs_A=np.zeros(1, np.float32), versions=((1, 1),),
        observation_O=NOTHING_P, prompt_T=np.array([1], np.int32), masked="its client went away",
    )  # fmt: skip
    assert split(SPEC, NOTHING_P, [turn]) == []
    other = replace(turn, index=1, masked="")
    assert [window.id for window in split(SPEC, NOTHING_P, [turn, other])] == ["e/w1"]
    assert window_of_each(SPEC, [turn, other]) == ["e/w0", "e/w1"]
