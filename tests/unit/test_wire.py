"""The wire: every record comes back as it went, arrays bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict, Window
from klong_rl.wire import KINDS, WireError, decode, encode

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


RECORDS = [
    TASK := Task(id="t", family="f", instruction="Go.", image="i", files={"a": b"b"}),
    EpisodeSpec(id="e", group="g", group_size=1, stage=1, purpose="train", task=TASK, timeout_s=1.0, max_turns=2),
    TURN := Turn(
        index=0, context_start=0, action_A=np.arange(3, dtype=np.int32), logprobs_A=np.zeros(3, np.float32),
        versions=((1, 3),), observation_O=np.zeros(0, np.int32), chain=b"0123456789abcdef",
    ),
    Segment(episode="e", epoch=1, seq=0, turns=(TURN,), prefix_P=np.arange(4, dtype=np.int32)),
    Outcome(kind="timeout"),
    Verdict(score=0.5, parts={"a": 1.0}),
    Window(
        id="w", episode="e", group="g", stage=1, tokens_T=np.arange(2, dtype=np.int32),
        targets_T=np.ones(2, np.uint8), logprobs_T=np.zeros(2, np.float32), versions=((1, 2),),
    ),
]  # fmt: skip
NAMED = [pytest.param(record, id=type(record).__name__) for record in RECORDS]


def test_every_kind_of_record_is_tried():
    assert {type(record) for record in RECORDS} == set(KINDS)


@pytest.mark.parametrize("record", NAMED)
def test_a_record_comes_back_as_it_went(record):
    assert encode(decode(encode(record), type(record))) == encode(record)


@pytest.mark.parametrize("record", NAMED)
def test_a_record_is_not_read_as_another_kind(record):
    for kind in KINDS:
        if kind is not type(record):
            with pytest.raises(WireError, match=f"{kind.__name__}: the frame holds {type(record).__name__}"):
                decode(encode(record), kind)


@pytest.mark.parametrize("record", NAMED)
@given(data=st.data())
def test_a_changed_byte_is_always_seen(record, data):
    frame = bytearray(encode(record))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError, match=type(record).__name__):
        decode(bytes(frame), type(record))


@pytest.mark.parametrize("record", NAMED)
@given(data=st.data())
def test_a_message_of_another_length_is_refused(record, data):
    frame = encode(record)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for message in (frame[:cut], frame + bytes(cut + 1)):
        with pytest.raises(WireError, match=type(record).__name__):
            decode(message, type(record))


def test_another_release_is_told_from_damage():
    frame = bytearray(encode(Outcome(kind="timeout")))
    frame[3] += 1
    with pytest.raises(WireError, match="layout 2 was written by another release; this one reads 1"):
        decode(bytes(frame), Outcome)


def test_what_is_no_record_is_refused():
    with pytest.raises(TypeError, match="dict is no record of the wire"):
        encode({})


def test_a_whole_frame_of_another_shape_is_refused_with_the_field():
    with pytest.raises(WireError, match=r"\$.kind"):
        decode(encode(Outcome(kind=7)), Outcome)
