"""Garbage on the wire: refused with an error that says what is wrong, and the buffer is as it was.

Mutated are frames that a reader decodes; arguments of the transition scripts, called as a broken or foreign client
would; and records that such a client put into Redis past them. `KLONG_WIRE_EXAMPLES` says how many of each.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from klong_rl import wire
from klong_rl.buffer import (
    Buffer,
    Committed,
    Conflict,
    EmbeddedRedis,
    OutOfSequence,
    Refused,
    StaleEpoch,
    Unknown,
    WrongState,
)
from klong_rl.buffer.rules import Rules
from klong_rl.wire import HEADER_BYTES, KINDS, WireError, decode, encode
from tests.episodes import spec
from tests.integration.wire_rules import SCRIPTS, Malformed, obey, text
from tests.integration.wire_stage import BUILT, CALLS, STAGED, Stage, told
from tests.unit.test_wire import RECORDS

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("KLONG_WIRE_EXAMPLES", "500"))
many = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

FRAMES = [encode(record) for record in RECORDS]
NUMBERS = [b"", b"-1", b"0", b"1", b"2", b"02", b"1.5", b"1e3", b"nan", b"inf", b" 1", b"0x1", b"9" * 15, b"9" * 16]
shapes = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "turns", "x"]), inner),
    max_leaves=6,
)


def framed(kind: int, body: bytes) -> bytes:
    """A whole frame around any body."""
    checksum = wire._checksum(memoryview(body), kind, wire.LAYOUT)
    return wire._HEADER.pack(b"KL", kind, wire.LAYOUT, len(body), checksum) + body


def flipped(frame: bytes, bits: list[int]) -> bytes:
    changed = bytearray(frame)
    for bit in bits:
        bit %= 8 * len(changed)
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@st.composite
def mutated(draw: st.DrawFn, frame: bytes) -> bytes:
    """Another message than `frame`, near it or far."""
    how = draw(st.sampled_from(["bits", "cut", "longer", "kind", "bytes", "shape"]))
    if how == "bits" and frame:
        return flipped(frame, draw(st.lists(st.integers(0, 8 * len(frame) - 1), min_size=1, max_size=3, unique=True)))
    if how == "cut" and frame:
        return frame[: draw(st.integers(0, len(frame) - 1))]
    if how == "longer":
        return frame + draw(st.binary(min_size=1, max_size=9))
    if how == "kind":
        return draw(st.sampled_from([other for other in FRAMES if other[2:3] != frame[2:3]]))
    if how == "shape":
        return framed(draw(st.sampled_from(sorted(KINDS.values()))), msgspec.msgpack.encode(draw(shapes)))
    return draw(st.binary(max_size=64))


@many
@given(data=st.data())
def test_no_mutated_frame_is_decoded(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(RECORDS), label="record")
    message = data.draw(mutated(encode(record)), label="message")
    with pytest.raises(WireError, match=f"^{type(record).__name__}: "):
        decode(message, type(record))


@st.composite
def mutated_calls(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    name, arguments = draw(st.sampled_from(CALLS[BUILT:] * 3 + CALLS[:BUILT]))
    arguments = list(arguments)
    for _ in range(draw(st.integers(1, 2))):
        i = draw(st.integers(0, len(arguments) - 1)) if arguments else 0
        how = draw(st.sampled_from(["value", "value", "number", "other", "drop", "add", "swap", "name"]))
        if how == "name":
            name = draw(st.sampled_from(sorted(SCRIPTS)))
        elif how == "add" or not arguments:
            arguments.insert(i, draw(st.sampled_from(NUMBERS) | st.binary(max_size=9)))
        elif how == "value":
            arguments[i] = draw(mutated(arguments[i]))
        elif how == "number":
            arguments[i] = draw(st.sampled_from(NUMBERS))
        elif how == "other":
            arguments[i] = draw(st.sampled_from(draw(st.sampled_from(CALLS))[1]))
        elif how == "drop":
            del arguments[i]
        else:
            j = draw(st.integers(0, len(arguments) - 1))
            arguments[i], arguments[j] = arguments[j], arguments[i]
    return name, arguments


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with EmbeddedRedis(tmp_path_factory.mktemp("wire")) as server, asyncio.Runner() as runner:
        stage = Stage(server.url, runner.get_loop())
        yield stage
        runner.run(stage.buffer.close())


def is_staged(stage: Stage, name: str, arguments: list[bytes]) -> bool:
    """False for an append of which a new segment isn't staged as its header says."""
    if name != "append":
        return True
    episode, first = text(arguments[0]), int(arguments[2])
    new = len(stage.model.episodes[episode].segments)
    heads = enumerate(arguments[3::2], first)
    return all(STAGED.get(f"{episode}:{seq}", b"")[:HEADER_BYTES] == head for seq, head in heads if seq >= new)


def expected(model: Rules, name: str, arguments: list[bytes]) -> type[Exception] | None:
    """What the rules refuse these arguments with; None if they carry them out, on `model`."""
    try:
        obey(model, name, arguments)
    except (Malformed, Refused) as refusal:
        return type(refusal)
    return None


CODES = {kind.encode(): error for kind, error in (
    ("STALE", StaleEpoch), ("OUT_OF_SEQUENCE", OutOfSequence), ("CONFLICT", Conflict), ("WRONG_STATE", WrongState),
    ("COMMITTED", Committed), ("UNKNOWN", Unknown),
)}  # fmt: skip


def test_the_calls_that_are_mutated_do_what_the_rules_say(stage: Stage) -> None:
    for name, arguments in CALLS[BUILT:]:
        model = copy.deepcopy(stage.model)
        assert expected(model, name, arguments) is None, (name, arguments)
        assert stage.call(name, arguments)[0] == b"OK", (name, arguments)
        assert stage.summary() == told(model), (name, arguments)
        stage.restore()
    assert {name for name, _ in CALLS[BUILT:]} == set(SCRIPTS) == set(stage.scripts)


@many
@given(call=mutated_calls())
@example(call=("claim", [b"b", b"first"]))  # a request of that name was answered by another transition
def test_a_mutated_call_is_refused_or_does_what_the_rules_say(stage: Stage, call: tuple[str, list[bytes]]) -> None:
    name, arguments = call
    model = copy.deepcopy(stage.model)
    refusal = expected(model, name, arguments)
    try:
        answer = stage.call(name, arguments)
    except redis.exceptions.TryAgainError:
        assert refusal is None and not is_staged(stage, name, arguments)
        refusal = Refused
    except redis.exceptions.ResponseError as error:
        assert str(error).startswith("MALFORMED "), error
        assert refusal is Malformed, f"{name} refuses what is well-formed: {error}"
    else:
        found = CODES.get(answer[0])
        assert found is refusal, f"{name}{arguments} was answered {answer}, the rules say {refusal}"
        if refusal is None:
            assert stage.summary() == told(model) and is_staged(stage, name, arguments)
    try:
        if refusal is not None:
            assert stage.changed() == [], f"{name} was refused and changed something"
    finally:
        stage.restore()


@many
@given(data=st.data())
def test_a_record_that_was_damaged_in_redis_is_refused_with_its_key(stage: Stage, data: st.DataObject) -> None:
    """Each place where a record lies, and each look that reads it."""
    name, field, looks = data.draw(st.sampled_from(PLACES), label="place")
    key = stage.key(*name)
    whole = stage.client.hget(key, field) if field else stage.client.get(key)
    damaged = data.draw(mutated(whole), label="damaged")
    stage.client.hset(key, field, damaged) if field else stage.client.set(key, damaged)
    try:
        for look, argument in looks:
            with pytest.raises(WireError, match=f"^{re.escape(text(key))} holds a damaged record: "):
                stage.loop.run_until_complete(getattr(stage.buffer, look)(argument))
    finally:
        stage.client.hset(key, field, whole) if field else stage.client.set(key, whole)


SEGMENTS = [("segments", "running-0"), ("progress", "running-0")]
GROUP = [("group", "complete"), ("results", "complete")]
PLACES: list[tuple[tuple[str, ...], str, list[tuple[str, Any]]]] = [
    (("segment", "running-0", "1"), "", SEGMENTS),
    (("segment", "complete-0", "0"), "", [("segments", "complete-0"), ("group", "complete")]),
    (("window", "ready/w1"), "", [("windows", ["ready/w0", "ready/w1"])]),
    (("episode", "intended-0"), "intended", [("progress", "intended-0")]),
    (("episode", "complete-0"), "spec", [("episode", "complete-0"), ("group", "complete")]),
    (("episode", "complete-0"), "outcome", [("progress", "complete-0"), *GROUP]),
    (("episode", "complete-0"), "verdict", [("episode", "complete-0"), *GROUP]),
]


@pytest.mark.parametrize("call", ["claim", "next_to_judge"])
async def test_an_episode_that_is_handed_out_damaged_is_refused(stage: Stage, call: str) -> None:
    episode = "queued-0" if call == "claim" else "sealed-0"
    stage.client.hset(stage.key("episode", episode), "spec", flipped(encode(spec("queued", 0, 2)), [300]))
    try:
        async with await Buffer.connect(stage.address) as buffer:
            with pytest.raises(WireError, match="EpisodeSpec: the checksum of its .* bytes doesn't fit"):
                await getattr(buffer, call)("b")
    finally:
        stage.restore()
