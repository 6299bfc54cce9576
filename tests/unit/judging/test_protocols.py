"""What is sent and read in the two protocols."""

import pytest

from klong_rl.config import EndpointConfig
from klong_rl.judging.protocols import Anthropic, OpenAI, Usage

TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
CONFIG = EndpointConfig(url="http://x/v1", model="m", usd_per_mtok_in=2.0, usd_per_mtok_out=10.0)


def completion(message: dict, finish: str = "stop") -> dict:
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {"prompt_tokens": 500_000}}


def test_a_schema_is_sent_for_constrained_decoding():
    body = OpenAI.body(CONFIG, TALK, {"title": "draft", "type": "object"})
    assert body["response_format"]["json_schema"]["name"] == "draft" and body["messages"] == TALK
    assert "response_format" not in OpenAI.body(CONFIG, TALK, None)


def test_extra_fields_win_and_null_takes_one_out():
    config = EndpointConfig(model="m", extra={"temperature": None, "reasoning_effort": "high"})
    body = OpenAI.body(config, TALK, None)
    assert "temperature" not in body and body["reasoning_effort"] == "high"


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a", "reasoning_content": "hm"},
        {"content": "a", "reasoning": "hm"},
        {"content": "<think>hm</think>\n\na"},
    ],
)
def test_thinking_is_taken_out_of_the_text(message):
    reply = OpenAI.read(completion(message), CONFIG)
    assert (reply.text, reply.thinking, reply.is_cut) == ("a", "hm", False)
    assert reply.usage == Usage(requests=1, prompt_tokens=500_000, usd=1.0)


def test_a_refusal_and_a_cut_are_told():
    refused = OpenAI.read(completion({"content": None, "refusal": "no"}), CONFIG)
    assert (refused.text, refused.refusal) == ("", "no")
    assert OpenAI.read(completion({"content": "a"}, "length"), CONFIG).is_cut
    answer = {"content": [{"type": "text", "text": "n"}], "stop_reason": "refusal"}
    assert Anthropic.read(answer, CONFIG).refusal and not Anthropic.read(answer, CONFIG).usage.prompt_tokens


def test_anthropic_has_the_system_apart_and_caches_up_to_the_newest_message():
    body = Anthropic.body(
        CONFIG, [*TALK, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}], None
    )
    assert body["system"] == "s" and [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][-1]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["messages"][0]["content"] == "u" and TALK[1]["content"] == "u"
    assert Anthropic.headers("k")["x-api-key"] == "k"


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, {"choices": [{}]}, "text", None])
def test_what_is_no_completion_is_told(answer):
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        OpenAI.read(answer, CONFIG)


def test_usages_add_up():
    assert Usage(requests=1, usd=0.5) + Usage(kept=2, usd=0.25) == Usage(requests=1, kept=2, usd=0.75)
