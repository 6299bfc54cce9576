"""The wire: every record comes back as it went, arrays bit for bit."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.types import Segment, Turn, Window, decode, encode

INTS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20).map(lambda values: np.array(values, np.int32))
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=20).map(lambda values: np.array(values, np.float32))


@given(INTS, FLOATS, INTS, INTS)
def test_a_segment_comes_back_as_it_went(action_A, logprobs_A, observation_O, prefix_P):
    turn = Turn(
        index=3,
        context_start=1,
        action_A=action_A,
        logprobs_A=logprobs_A,
        versions=((4, 2), (5, 1)),
        observation_O=observation_O,
        command="cat f",
        exit_code=1,
        seconds=0.5,
    )
    back = decode(encode(Segment(episode="e", epoch=2, seq=3, turns=(turn,), prefix_P=prefix_P)), Segment)
    for name, array in (("action_A", action_A), ("logprobs_A", logprobs_A), ("observation_O", observation_O)):
        assert getattr(back.turns[0], name).tobytes() == array.tobytes()
        assert getattr(back.turns[0], name).dtype == array.dtype
    assert back.prefix_P.tobytes() == prefix_P.tobytes()
    assert (back.turns[0].versions, back.turns[0].exit_code, back.epoch) == (((4, 2), (5, 1)), 1, 2)


def test_arrays_of_other_kinds_do_not_travel():
    with pytest.raises(TypeError, match=r"float64\[2\]"):
        encode(Segment(episode="e", epoch=0, seq=0, turns=(), prefix_P=np.zeros(2)))


def test_what_is_no_record_is_refused_with_the_field():
    with pytest.raises(msgspec.ValidationError, match=r"\$.prefix_P"):
        decode(msgspec.msgpack.encode({"episode": "e", "epoch": 0, "seq": 0, "turns": [], "prefix_P": "x"}), Segment)


def test_the_oldest_version_of_a_window_is_over_its_targets():
    window = Window(
        id="w",
        episode="e",
        group="g",
        stage=1,
        tokens_T=np.arange(6, dtype=np.int32),
        targets_T=np.array([0, 1, 1, 0, 1, 1], np.uint8),
        logprobs_T=np.zeros(6, np.float32),
        versions=((7, 2), (5, 2)),
    )
    assert (window.oldest_version(), window.n_targets()) == (5, 4)
