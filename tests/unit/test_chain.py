"""The chain: whatever is changed of an episode's turns is noticed, and nothing else is."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.branches import joined
from klong_rl.chain import BrokenChain, check, link
from klong_rl.types import Turn

PREFIX = np.array([1, 2, 3], np.int32)
tokens = st.lists(st.integers(0, 50), min_size=1, max_size=4).map(lambda some: np.array(some, np.int32))


@st.composite
def episodes(draw) -> list[Turn]:
    turns: list[Turn] = []
    start, previous = 0, b""
    for i in range(draw(st.integers(1, 5))):
        start = draw(st.integers(start, i))
        action = draw(tokens)
        previous = link(previous, joined(PREFIX, turns[start:i]), action)
        turns.append(
            Turn(
                index=i, context_start=start, action_A=action, logprobs_A=np.zeros(len(action), np.float32),
                versions=((1, len(action)),), observation_O=draw(tokens), chain=previous,
            )
        )  # fmt: skip
    return turns


@given(episodes())
def test_the_turns_that_were_sampled_fit(turns):
    assert check("e", PREFIX, turns) == turns[-1].chain


def test_an_episode_without_turns_fits():
    assert check("e", PREFIX, []) == b""


@given(episodes(), st.data())
def test_any_change_before_the_last_observation_is_noticed(turns, data):
    i = data.draw(st.integers(0, len(turns) - 1))
    seen_later = any(turn.context_start <= i < turn.index for turn in turns)
    name = data.draw(st.sampled_from(["action_A", "observation_O"] if seen_later else ["action_A"]))
    changed = getattr(turns[i], name).copy()
    changed[data.draw(st.integers(0, len(changed) - 1))] += 1
    turns[i] = msgspec.structs.replace(turns[i], **{name: changed})
    with pytest.raises(BrokenChain, match="episode e: turn"):
        check("e", PREFIX, turns)


@given(episodes())
def test_another_prefix_and_a_missing_turn_are_noticed(turns):
    with pytest.raises(BrokenChain, match="turn 0"):
        check("e", PREFIX + 1, turns)
    if len(turns) > 1:
        with pytest.raises(BrokenChain):
            check("e", PREFIX, turns[1:])


def test_where_context_ends_and_action_begins_is_part_of_a_link():
    a, b = np.array([1, 2], np.int32), np.array([3], np.int32)
    assert link(b"", a, b) != link(b"", a[:1], np.array([2, 3], np.int32))
