"""Stamps: each token has the version that was in place when it was handed over, however late that is read."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from actors.weight_versions import NamedByVllm, Stamps, weight_versions


class Processor:
    """vLLM's OutputProcessor as far as stamps see it."""

    def __init__(self):
        self.request_states = {}
        self.processed = []

    def process_outputs(self, outputs, timestamp=None, stats=None):
        self.processed.append((outputs, timestamp, stats))
        return "processed"


def tokens(request, count):
    return SimpleNamespace(request_id=f"{request}-internal", new_token_ids=[1] * count)


@pytest.fixture
def stamped(monkeypatch):
    """Stamps on a processor that knows requests a and b, with version 3 since 10.0 and version 5 since 20.0."""
    processor = Processor()
    processor.request_states = {f"{name}-internal": SimpleNamespace(external_req_id=name) for name in "ab"}
    stamps = Stamps(SimpleNamespace(output_processor=processor))
    for now, version in ((10.0, 3), (20.0, 5)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        asyncio.run(stamps.set(version))
    return stamps, processor


def test_tokens_have_the_version_of_their_time_and_not_of_when_they_are_read(stamped):
    stamps, processor = stamped
    for outputs, at in (([tokens("a", 2), tokens("b", 1)], 15.0), ([tokens("a", 3)], 19.9), ([tokens("a", 4)], 20.1)):
        assert processor.process_outputs(outputs, at, "stats") == "processed"
    assert [at for _, at, _ in processor.processed] == [15.0, 19.9, 20.1]
    assert stamps.take("a", None) == ((3, 5), (5, 4))
    assert stamps.take("b", None) == ((3, 1),)
    assert asyncio.run(stamps.current()) == 5


def test_what_was_taken_or_is_of_a_request_that_ended_is_not_kept(stamped):
    stamps, processor = stamped
    processor.process_outputs([tokens("a", 2)], 15.0)
    stamps.take("a", None)
    processor.request_states.clear()
    processor.process_outputs([tokens("a", 2)], 16.0)
    assert stamps.take("a", None) == ()


def test_vllm_names_versions_itself_where_it_can():
    new = SimpleNamespace(output_processor=Processor(), update_weight_version=None)
    assert isinstance(weight_versions(new), NamedByVllm)
    assert isinstance(weight_versions(SimpleNamespace(output_processor=Processor())), Stamps)
