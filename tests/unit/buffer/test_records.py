"""Addresses, references and errors: what travels between processes beside the wire records."""

from __future__ import annotations

import inspect
import pickle

import msgspec
import numpy as np
import pytest

from klong_rl.buffer import BufferAddress, WindowRef, errors
from klong_rl.types import Window

FACTS = {"episode": "e", "held": 1, "current": 2, "state": "running", "seq": 3, "expected": 2, "thing": "group",
         "name": "g", "step": 1, "committed": 2, "transition": "append", "what": "epoch: want an integer"}  # fmt: skip


@pytest.mark.parametrize("run", ["", "a{b}", "a b", "a:b"])
def test_a_run_name_that_would_break_its_keys_is_refused(run: str) -> None:
    with pytest.raises(ValueError, match="rename the run"):
        BufferAddress("unix:///r.sock", run)


def test_a_deadline_is_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="deadline_s 0"):
        BufferAddress("unix:///r.sock", "run", deadline_s=0)


def test_an_address_travels() -> None:
    address = BufferAddress("unix:///r.sock", "relay-1.0_b", 5.0)
    assert pickle.loads(pickle.dumps(address)) == address


def test_a_reference_says_what_the_window_holds_and_is_an_array_on_the_wire() -> None:
    window = Window(
        id="w", episode="e", group="g", stage=3, tokens_T=np.arange(5, dtype=np.int32),
        targets_T=np.array([0, 1, 0, 1, 1], np.uint8), logprobs_T=np.zeros(5, np.float32), versions=((4, 2), (2, 1)),
    )  # fmt: skip
    ref = WindowRef.of(window)
    assert ref == WindowRef(id="w", n_tokens=5, n_targets=3, versions=(2, 4), stage=3, group="g")
    assert msgspec.msgpack.decode(ref.pack()) == ["w", 5, 3, [2, 4], 3, "g"]  # the order that lease.lua reads
    assert WindowRef.unpack(ref.pack()) == ref and ref.oldest_version == 2


def refusals() -> list[type[errors.Refused]]:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Refused)]
    return [kind for kind in kinds if kind is not errors.Refused]


@pytest.mark.parametrize("kind", refusals())
def test_a_refusal_travels_and_names_its_facts(kind: type[errors.Refused]) -> None:
    facts = [FACTS[name] for name in inspect.signature(kind).parameters]
    refusal = kind(*facts)
    copy = pickle.loads(pickle.dumps(refusal))
    assert type(copy) is kind and copy.args == tuple(facts) and str(copy) == str(refusal)
    assert all(str(fact) in str(refusal) for fact in facts)
