"""The invariants of the context rule: sampling and splitting, on arbitrary trajectories."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.types import EpisodeSpec, Task, Turn
from klong_rl.windows import ContextOverflow, ContextRule, context_start, flat, spans, split, windows

PREFIX_P = np.array([1, 2, 3, 4, 5], np.int32)
RULE = ContextRule(max_tokens=60, overlap_tokens=12, action_tokens=10)
TASK = Task(id="t", family="f", instruction="i", image="m")
SPEC = EpisodeSpec(id="e", group="g", group_size=2, stage=1, purpose="train", task=TASK, timeout_s=1, max_turns=99)


def turn(index: int, action: int, observation: int, first_token: int) -> Turn:
    """A turn whose tokens are all different from any other turn's."""
    tokens = np.arange(first_token, first_token + action + observation, dtype=np.int32)
    return Turn(
        index=index,
        context_start=0,
        action_A=tokens[:action],
        logprobs_A=-tokens[:action].astype(np.float32),
        versions=((index // 3, action),),
        observation_O=tokens[action:],
    )


def trajectory(lengths: list[tuple[int, int]]) -> list[Turn]:
    turns, token = [], 1000
    for index, (action, observation) in enumerate(lengths):
        turns.append(turn(index, action, observation, token))
        token += action + observation
    return turns


def sampled(lengths: list[tuple[int, int]]) -> list[Turn]:
    """The turns of an episode that was sampled under RULE: asked before each action."""
    turns, start = [], 0
    for made in trajectory(lengths):
        start = context_start([turn.n_tokens() for turn in turns], start, len(PREFIX_P), RULE)
        turns.append(msgspec.structs.replace(made, context_start=start))
    return turns


LENGTHS = st.lists(st.tuples(st.integers(1, 10), st.integers(0, 25)), min_size=1, max_size=40)


@given(LENGTHS)
def test_every_action_token_is_a_target_exactly_once_in_the_context_it_was_sampled_in(lengths):
    turns = sampled(lengths)
    windows = split(SPEC, PREFIX_P, turns)

    targets = np.concatenate([window.tokens_T[window.targets_T == 1] for window in windows])
    assert targets.tolist() == np.concatenate([turn.action_A for turn in turns]).tolist()
    for window in windows:
        assert len(window.tokens_T) <= RULE.max_tokens
        assert window.tokens_T[: len(PREFIX_P)].tolist() == PREFIX_P.tolist()
        assert (np.diff(window.tokens_T[len(PREFIX_P) :]) > 0).all(), "order is kept"
        assert window.n_targets() == sum(count for _, count in window.versions)
        on_targets = window.targets_T == 1
        assert (window.logprobs_T[on_targets] == -window.tokens_T[on_targets]).all()
        assert (window.logprobs_T[~on_targets] == 0).all()
    assert len({window.id for window in windows}) == len(windows)


@given(LENGTHS)
def test_the_window_holds_the_very_context_of_each_action(lengths):
    turns = sampled(lengths)
    by_token = {int(t): w for w in split(SPEC, PREFIX_P, turns) for t in w.tokens_T[w.targets_T == 1]}
    for turn in turns:
        sampled_in = [PREFIX_P]
        for earlier in turns[turn.context_start : turn.index]:
            sampled_in += [earlier.action_A, earlier.observation_O]
        context = np.concatenate(sampled_in).tolist()
        window = by_token[int(turn.action_A[0])]
        assert window.tokens_T[: len(context)].tolist() == context


@given(LENGTHS)
def test_what_is_kept_is_the_newest_and_enough_for_the_overlap(lengths):
    turns = sampled(lengths)
    for before, after in zip(turns, turns[1:], strict=False):
        assert after.context_start >= before.context_start
        if after.context_start > before.context_start:
            kept = sum(t.n_tokens() for t in turns[after.context_start : after.index])
            wider = kept + turns[after.context_start - 1].n_tokens()
            room = RULE.room_for_turns(len(PREFIX_P), RULE.action_tokens)
            # Short of the overlap only where one turn more would not have fitted, or would have changed nothing.
            assert kept >= RULE.overlap_tokens or wider > room or after.context_start == before.context_start + 1


def test_a_start_stays_until_the_context_is_full():
    lengths = [10, 10, 10]
    assert context_start(lengths, 0, 5, RULE) == 0
    assert context_start([*lengths, 10], 0, 5, RULE) == 0
    assert context_start([*lengths, 10, 10], 0, 5, RULE) == 3


def test_a_newest_turn_that_does_not_fit_is_said_and_not_dropped():
    with pytest.raises(ContextOverflow, match="turn 1 of 60 tokens"):
        context_start([10, 60], 0, 5, RULE)


@given(LENGTHS)
def test_a_finished_trajectory_is_split_as_the_same_turns_are_when_sampled(lengths):
    turns = sampled(lengths)
    as_read = flat("e", PREFIX_P, [(turn.action_A, turn.observation_O) for turn in turns])
    wanted = [(w.id, w.tokens_T.tolist(), w.targets_T.tolist()) for w in split(SPEC, PREFIX_P, turns)]
    assert [(w.id, w.tokens_T.tolist(), w.targets_T.tolist()) for w in windows(as_read, RULE)] == wanted


@st.composite
def trajectories(draw):
    """Turns of any length, also far longer than a window, under any rule that leaves the prefix some room."""
    n_prefix = draw(st.integers(1, 8))
    room = draw(st.integers(1, 60))
    rule = ContextRule(n_prefix + room, draw(st.integers(0, 30)), draw(st.integers(1, 12)))
    short, long = st.tuples(st.integers(1, 9), st.integers(0, 9)), st.tuples(st.integers(1, 150), st.integers(0, 150))
    lengths = draw(st.lists(short | long, min_size=1, max_size=30))
    turns = [(turn.action_A, turn.observation_O) for turn in trajectory(lengths)]
    return flat("e", np.arange(n_prefix, dtype=np.int32), turns), rule


@given(trajectories())
def test_whatever_the_lengths_the_targets_of_the_windows_are_the_actions(drawn):
    made, rule = drawn
    split_up = list(windows(made, rule))

    targets = np.concatenate([window.tokens_T[window.targets_T == 1] for window in split_up])
    assert targets.tolist() == made.tokens_T[made.agent_T == 1].tolist(), "each once, and in order"
    n_prefix = len(made.prefix_P)
    for window in split_up:
        assert len(window.tokens_T) <= rule.max_tokens
        assert window.tokens_T[:n_prefix].tolist() == made.prefix_P.tolist()
        assert (np.diff(window.tokens_T[n_prefix:]) == 1).all(), "a run of the trajectory, with nothing left out"
        assert window.n_targets() == window.versions[0][1] > 0
        assert window.targets_T[-1] == 1, "nothing after the last target"


@given(trajectories())
def test_a_later_window_overlaps_what_came_before_as_far_as_there_is_room(drawn):
    made, rule = drawn
    capacity = rule.max_tokens - len(made.prefix_P)
    starts = made.starts_K.tolist()
    found = list(spans(made, rule))
    for before, span in zip(found, found[1:], strict=False):
        overlap = span.target - span.first
        if overlap >= rule.overlap_tokens or span.first == 0:
            continue
        inside_a_turn = overlap >= min(rule.overlap_tokens, capacity // 2) or span.end - span.first == capacity
        if span.first in starts:
            earlier = starts[starts.index(span.first) - 1]
            action_tokens = made.ends_K[starts.index(span.target)] - span.target if span.target in starts else 0
            room = capacity - max(rule.action_tokens, action_tokens)
            # A turn more would not have fitted, or nothing would have been left out.
            assert span.target - earlier > room or earlier == before.first or inside_a_turn
        else:
            assert inside_a_turn


def test_an_action_longer_than_the_room_kept_for_one_takes_what_it_needs():
    turns = [(np.arange(10), np.arange(10)), (np.arange(10), np.arange(10)), (np.arange(30), np.arange(5))]
    assert list(spans(flat("e", PREFIX_P, turns), RULE)) == [(0, 0, 30), (20, 40, 70)]


def test_an_observation_longer_than_a_window_is_seen_by_its_newest_tokens():
    turns = [(np.arange(10), np.arange(100)), (np.arange(10), np.arange(5)), (np.arange(10), np.arange(5))]
    # 55 tokens are left by the prefix: 45 of the observation beside the action that answers it.
    assert list(spans(flat("e", PREFIX_P, turns), RULE)) == [(0, 0, 10), (65, 110, 120), (110, 125, 135)]


def test_an_action_longer_than_a_window_is_divided_with_the_overlap_between_its_parts():
    turns = [(np.arange(10), np.arange(5)), (np.arange(120), np.arange(5))]
    parts = list(spans(flat("e", PREFIX_P, turns), RULE))
    assert parts == [(0, 0, 10), (3, 15, 58), (46, 58, 101), (80, 101, 135)]


def test_a_prefix_that_fills_the_window_is_said():
    with pytest.raises(ContextOverflow, match="prefix of 60 tokens leaves no room"):
        list(windows(flat("e", np.arange(60), [(np.arange(1), np.arange(1))]), RULE))
