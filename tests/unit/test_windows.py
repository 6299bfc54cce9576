"""The invariants of the context rule: sampling and splitting, on arbitrary trajectories."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.types import EpisodeSpec, Task, Turn
from klong_rl.windows import ContextOverflow, ContextRule, context_start, split, with_context_starts

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


LENGTHS = st.lists(st.tuples(st.integers(1, 10), st.integers(0, 25)), min_size=1, max_size=40)


@given(LENGTHS)
def test_every_action_token_is_a_target_exactly_once_in_the_context_it_was_sampled_in(lengths):
    turns = with_context_starts(trajectory(lengths), len(PREFIX_P), RULE)
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
    turns = with_context_starts(trajectory(lengths), len(PREFIX_P), RULE)
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
    turns = with_context_starts(trajectory(lengths), len(PREFIX_P), RULE)
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


def test_an_action_longer_than_the_rule_s_room_takes_the_room_it_needs():
    assert context_start([20, 20], 0, 5, RULE, action_tokens=10) == 0
    assert context_start([20, 20], 0, 5, RULE, action_tokens=30) == 1
