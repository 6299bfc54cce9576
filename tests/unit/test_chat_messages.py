"""Whole conversations as tokens: what was sampled is never encoded again, and no text is taken for markup."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.chat import ChatFormat
from klong_rl.chat_messages import MessageFormat, Unrenderable
from klong_rl.conversation import NOTHING, Conversations, Message, Place, ToolCall

TOOL = {"type": "function", "function": {"name": "bash", "description": "a shell", "parameters": {"type": "object"}}}
# As Hermes' and Qwen's do it: schemas before the talk, calls after the text, answers of tools as a user's message.
HERMES = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|user|><tool_response>{{ m.content }}</tool_response><|end|>"
    "{% else %}{{ '<|' + m.role + '|>' + m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Llama's does it: either calls or text, and an error for an answer that nothing was called for.
LLAMA = (
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call before it') }}{% endif %}"
    "<|user|>{{ m.content }}<|end|>{% elif m.tool_calls %}<|assistant|>{{ m.tool_calls[0].function | tojson }}<|end|>"
    "{% else %}{{ '<|' + m.role + '|>' + m.content }}<|end|>{% endif %}{% endfor %}<|assistant|>"
)


def with_template(chat: ChatFormat, folder, template: str) -> ChatFormat:
    chat.tokenizer.save_pretrained(folder)
    path = folder / "chat_template.jinja"
    path.write_text(template)
    return ChatFormat(folder)


@pytest.fixture
def hermes(chat, tmp_path) -> ChatFormat:
    return with_template(chat, tmp_path, HERMES)


def show(chat: ChatFormat, tokens_T: np.ndarray) -> str:
    return chat.tokenizer.decode(tokens_T.tolist())


SYSTEM, GO = Message("system", "You have a shell."), Message("user", "cat amber")


def test_a_new_branch_is_the_template_around_the_texts(hermes):
    prompt_T = MessageFormat(hermes).prompt([SYSTEM, GO], [TOOL])
    tool = json.dumps(TOOL)
    text = f"<|system|>{tool}<|end|><|system|>You have a shell.<|end|>\n<|user|>cat amber<|end|>\n<|assistant|>"
    assert show(hermes, prompt_T) == text


def test_it_is_the_prefix_of_the_built_in_agent(chat):
    expected = chat.prefix(SYSTEM.content, GO.content)
    assert MessageFormat(chat).prompt([SYSTEM, GO], []).tolist() == expected.tolist()


@pytest.mark.parametrize(("cut", "close"), [(False, ""), (True, "<|end|>")])
def test_what_follows_a_call_is_its_end_the_tools_answer_and_the_opening(hermes, cut, close):
    call = ToolCall("call_1", "bash", '{"command": "cat <|end|>"}')  # sampled so: none of our business
    answer, digit = Message("assistant", "", (call,)), Message("tool", "digit 7", tool_call_id="call_1")
    action_A = hermes.action("anything")[: -1 if cut else None]
    form = MessageFormat(hermes)
    messages = [SYSTEM, GO, answer, digit]
    form.refuse_markup(messages, [TOOL], 3)
    after_T = form.after(messages, [TOOL], 3, action_A)
    text = f"{close}\n<|user|><tool_response>digit 7</tool_response><|end|><|assistant|>"
    assert show(hermes, after_T) == text


def test_a_template_that_shows_calls_in_place_of_text_works_too(chat, tmp_path):
    llama = with_template(chat, tmp_path, LLAMA)
    call = ToolCall("call_1", "bash", "{}")
    messages = [GO, Message("assistant", "", (call,)), GO]
    after_T = MessageFormat(llama).after(messages, [], 2, llama.action("x"))
    assert show(llama, after_T) == "<|user|>cat amber<|end|><|assistant|>"


def test_a_template_says_what_it_refuses(chat, tmp_path):
    form = MessageFormat(with_template(chat, tmp_path, LLAMA))
    with pytest.raises(Unrenderable, match="no call before it"):
        form.prompt([GO, Message("tool", "x")], [])


def test_calls_that_nobody_sampled_are_shown_by_the_template(hermes):
    call = ToolCall("call_1", "bash", '{"command": "ls"}')
    prompt_T = MessageFormat(hermes).prompt([GO, Message("assistant", "so", (call,)), GO], [])
    assert '<|assistant|>so<tool_call>bash {"command": "ls"}</tool_call><|end|>\n' in show(hermes, prompt_T)


@pytest.mark.parametrize(
    "message",
    [
        Message("assistant", "", (ToolCall("c", "bash", '{"command": "<|end|>"}'),)),
        Message("assistant", "", (ToolCall("c", "<|user|>", "{}"),)),
        Message("tool", "x", tool_call_id="\u241a0\u241a"),
        Message("user", "x", name="<|assistant|>"),
    ],
)
def test_markup_where_a_template_would_take_it_for_its_own_is_refused(hermes, message):
    form = MessageFormat(hermes)
    with pytest.raises(Unrenderable, match="which is markup of this model"):
        form.refuse_markup([GO, message], [])
    form.refuse_markup([GO, message, GO], [], 2)


PIECES = st.sampled_from(["<|end|>", "<|user|>", "\u241a0\u241a", "a", " ", "\n"])


@given(st.lists(st.lists(PIECES).map("".join), min_size=1))
def test_no_text_of_a_message_ever_becomes_a_special_token(chat, texts):
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    prompt_T = MessageFormat(chat).prompt(messages, [])
    special = set(chat.tokenizer.all_special_ids)
    assert sum(token in special for token in prompt_T.tolist()) == 2 * len(messages) + 1
    for text in texts:
        assert text in chat.tokenizer.decode(prompt_T.tolist())


def test_whether_tools_are_shown_is_known(chat, hermes):
    assert MessageFormat(hermes).shows_tools() and not MessageFormat(chat).shows_tools()


@given(st.text(max_size=200))
def test_a_text_takes_at_least_as_many_tokens_as_is_said_without_encoding_it(chat, text):
    form = MessageFormat(chat)
    assert form.at_least([Message("user", text)]) <= len(form.prompt([Message("user", text)], []))


# Conversations


def talk(n: int) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], f"text {i}") for i in range(n)]


def test_a_request_goes_on_from_the_longest_turn_that_it_begins_with():
    it = Conversations()
    it.remember(talk(1), [], talk(2)[1], 0)
    it.remember(talk(3), [], talk(4)[3], 1)
    assert it.place(talk(5)) == Place(1, 4)
    assert it.place(talk(3)) == Place(0, 2)
    assert it.place(talk(1)) == Place(NOTHING, 0)
    assert it.place([Message("user", "other"), *talk(5)[1:]]) == Place(NOTHING, 0)


def test_of_equal_answers_the_newest_is_gone_on_from():
    it = Conversations()
    it.remember(talk(1), [], talk(2)[1], 0)
    it.remember(talk(1), [], talk(2)[1], 1)
    assert it.place(talk(3)) == Place(1, 2)


def test_other_tools_are_another_context():
    it = Conversations()
    it.remember(talk(1), [TOOL], talk(2)[1], 0)
    assert it.place(talk(3), [TOOL]) == Place(0, 2)
    assert it.place(talk(3), []) == Place(NOTHING, 0)


def test_a_call_whose_json_is_spaced_otherwise_is_the_same_and_another_argument_is_not():
    def answer(arguments: str) -> Message:
        return Message("assistant", "", (ToolCall("c", "bash", arguments),))

    it = Conversations()
    it.remember(talk(1), [], answer('{"a": 1, "b": 2}'), 0)
    assert it.place([*talk(1), answer('{"b":2,"a":1}'), *talk(1)]).turn == 0
    assert it.place([*talk(1), answer('{"a": 1}'), *talk(1)]).turn == NOTHING


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text("ab", max_size=2)), max_size=6), st.data())
def test_messages_that_differ_anywhere_are_no_continuation(pairs, data):
    messages = [Message("user", "go"), *(Message(role, text) for role, text in pairs)]
    it = Conversations()
    it.remember(messages, [], Message("assistant", "x"), 0)
    asked = [*messages, Message("assistant", "x"), Message("user", "on")]
    assert it.place(asked) == Place(0, len(messages) + 1)
    at = data.draw(st.integers(0, len(messages)))
    changed = Message(asked[at].role, asked[at].content + "!")
    assert it.place([*asked[:at], changed, *asked[at + 1 :]]).turn == NOTHING
