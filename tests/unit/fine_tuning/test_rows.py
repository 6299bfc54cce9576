"""Rows of training data: what they mean in tokens, and what is said of those that mean nothing."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.config import AgentConfig
from klong_rl.errors import UserError
from klong_rl.fine_tuning.rows import Encoder, of_tokens, row_of

USER, WROTE, TOOL = ({"role": role, "content": role} for role in ("user", "assistant", "tool"))


@pytest.fixture(scope="module")
def encoder(chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chat.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512}))
    return Encoder(folder, AgentConfig(system="You have a shell.", observation_tokens=8))


def parts(made):
    """Prefix, then (action, observation) of each turn."""
    stops = [*made.starts_K[1:], len(made.tokens_T)]
    bounds = zip(made.starts_K, made.ends_K, stops, strict=True)
    return made.prefix_P.tolist(), [(made.tokens_T[a:b].tolist(), made.tokens_T[b:c].tolist()) for a, b, c in bounds]


def test_a_conversation_is_encoded_as_the_agent_loop_would_have_sampled_it(chat, encoder):
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "cat amber"},
        {"role": "assistant", "content": "cat amber"},
        {"role": "tool", "content": "digit 7"},
        {"role": "user", "content": "next cedar"},
        {"role": "assistant", "content": "submit", "tool_calls": None, "name": "x"},
    ]
    row = row_of({"id": 3, "messages": talk, "score": 1}, "f: line 1")
    assert (row.id, row.score) == ("3", 1.0)
    prefix, turns = parts(encoder.trajectory(row))
    cat, submit = chat.action("cat amber"), chat.action("submit")
    assert prefix == chat.prefix("S", "cat amber").tolist()
    assert turns[0] == (cat.tolist(), chat.observation("digit 7\nnext cedar", cat, 8).tolist())
    assert turns[1][0] == submit.tolist()


def test_without_a_system_message_the_agent_s_own_is_used(chat, encoder):
    made = encoder.trajectory(row_of({"messages": [USER, WROTE]}, "f: line 7"))
    assert made.prefix_P.tolist() == chat.prefix("You have a shell.", "user").tolist()
    assert made.id == "f: line 7", "a row without an id has its place"


def test_an_observation_is_cut_as_the_agent_loop_cuts_it(chat, encoder):
    long = {"role": "tool", "content": "digit 7 " * 30}
    made = encoder.trajectory(row_of({"messages": [USER, WROTE, long, WROTE]}, "f"))
    assert parts(made)[1][0][1] == chat.observation(long["content"], chat.action("assistant"), 8).tolist()


@given(st.lists(st.integers(1, 5), min_size=2, max_size=12))
def test_token_ids_with_a_mask_are_cut_where_the_mask_changes(runs):
    agent = np.repeat(np.arange(len(runs)) % 2, runs)
    tokens = np.arange(len(agent)) + 100
    prefix, turns = parts(of_tokens("e", tokens.tolist(), agent.tolist(), "f"))
    assert prefix == list(range(100, 100 + runs[0]))
    assert [len(piece) for turn in turns for piece in turn if piece] == runs[1:]
    assert prefix + [token for turn in turns for piece in turn for token in piece] == tokens.tolist()


@pytest.mark.parametrize(
    "fields, field, remedy",
    [
        ([], "row", "docs/sft.md"),
        ({}, "messages", "give either messages, or tokens"),
        ({"messages": [USER, WROTE], "tokens": [1]}, "messages", "give either messages, or tokens"),
        ({"messages": [USER, {"role": "bot", "content": ""}]}, "messages[1].role", "'bot'"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1]", "content"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content", "null"),
        ({"messages": [USER]}, "messages", "remove the row"),
        ({"messages": [WROTE]}, "messages[0].role", "put that first"),
        ({"messages": [TOOL, WROTE]}, "messages[0].role", "put that first"),
        ({"messages": [USER, WROTE, WROTE]}, "messages[2].role", "two assistant messages in a row"),
        ({"messages": [USER, {"role": "system", "content": ""}, WROTE]}, "messages[1].role", "stands first"),
        ({"messages": [USER, {**WROTE, "tool_calls": [{}]}]}, "messages[1].tool_calls", "write the call into content"),
        ({"tokens": [1, 2], "agent": [0]}, "agent", "has 1 values for 2 tokens"),
        ({"tokens": [1, 2]}, "agent", "has 0 values for 2 tokens"),
        ({"tokens": [1, 2], "agent": [0, 2]}, "agent", "must be 1"),
        ({"tokens": [1, 2], "agent": [0, 0]}, "agent", "remove the row"),
        ({"tokens": [1, 2], "agent": [1, 0]}, "agent[0]", "put the prompt before it"),
        ({"tokens": [1, 2.5], "agent": [0, 1]}, "tokens", "whole numbers"),
        ({"tokens": [[1], [2, 3]], "agent": [0, 1]}, "tokens", "whole numbers"),
        ({"tokens": "12", "agent": [0, 1]}, "tokens", "whole numbers"),
        ({"tokens": [1, 700], "agent": [0, 1]}, "tokens", "700 is no token of this model, which has 512"),
        ({"tokens": [-1, 7], "agent": [0, 1]}, "tokens", "-1 is no token"),
        ({"messages": [USER, WROTE], "score": "high"}, "score", "str"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_one_line(encoder, fields, field, remedy):
    with pytest.raises(UserError, match=re.escape(remedy)) as caught:
        encoder.trajectory(row_of(fields, "d/f.jsonl: line 12"))
    message = str(caught.value)
    assert message.startswith(f"d/f.jsonl: line 12: field {field}: ") and "\n" not in message


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tokens": [1, 2, 700], "agent": [0, 0, 1]}, "700 is no token of this model"),
        ({"tokens": [1] * 60 + [2], "agent": [0] * 60 + [1]}, "field prefix: its 60 tokens leave no room"),
        ({"messages": [{"role": "user", "content": "word " * 60}, WROTE]}, "leave no room in window.max_tokens=60"),
    ],
)
def test_what_would_only_show_in_training_is_found_by_a_look(encoder, fields, words):
    row = row_of(fields, "f.jsonl: line 1")
    with pytest.raises(UserError, match=re.escape(words)):
        encoder.check(row, max_tokens=60)


def test_a_look_passes_what_fits(encoder):
    encoder.check(row_of({"tokens": [1, 2, 3], "agent": [0, 1, 1]}, "f.jsonl: line 1"), max_tokens=60)
