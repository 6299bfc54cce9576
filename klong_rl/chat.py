"""The model's own chat format, as tokens: a prefix, then action and observation in turn, never re-tokenised.

    prefix_P        [system, user] rendered with the model's template, ending where the assistant begins
    action_A        sampled; ends with the end-of-turn token unless it was cut
    observation_O   closes a cut action, then the user's message, then the opening of the next action

A text that comes out of a container is never parsed for special tokens, so it can't forge a turn of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from klong_rl.errors import UserError

# Any text that a template passes through untouched and that no template contains.
_MARK_A, _MARK_B = "\u241aA\u241a", "\u241aB\u241a"


class ChatFormat:
    """Token ids of conversations in the chat template of the tokenizer in `folder` (any Hugging Face chat model)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(f"model folder {folder} has no chat template; use an instruction-tuned checkpoint")
        self.end_token: str = self.tokenizer.eos_token
        self.end_id: int = self.tokenizer.eos_token_id
        self._opening, self._close, self._after = self._learn_template()

    def _learn_template(self) -> tuple[str, str, str]:
        """What the template puts before, and after, a user's message that answers an assistant's."""
        talk = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": _MARK_A},
            {"role": "user", "content": _MARK_B},
        ]
        text = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        between, after = text.split(_MARK_A)[1].split(_MARK_B)
        if not between.startswith(self.end_token):
            raise UserError(
                f"the chat template closes a turn with {between[:20]!r}, but the end-of-sequence token is "
                f"{self.end_token!r}; set eos_token in tokenizer_config.json to the token that ends a turn"
            )
        return between.removeprefix(self.end_token), self.end_token, after

    def prefix(self, system: str, instruction: str) -> np.ndarray:
        """prefix_P of a task: int32."""
        talk = [{"role": "system", "content": _MARK_A}, {"role": "user", "content": _MARK_B}]
        text = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        before, rest = text.split(_MARK_A)
        between, after = rest.split(_MARK_B)
        parts = [self.markup(before), self.plain(system), self.markup(between), self.plain(instruction)]
        return np.array(sum([*parts, self.markup(after)], []), np.int32)

    def action(self, text: str) -> np.ndarray:
        """action_A as the model would have sampled `text`: int32, end-of-turn included."""
        return np.array([*self.plain(text), self.end_id], np.int32)

    def observation(self, text: str, action_A: Sequence[int], limit: int) -> np.ndarray:
        """observation_O that answers `action_A`: int32. The text is cut in the middle to `limit` tokens."""
        close = [] if len(action_A) and action_A[-1] == self.end_id else self.markup(self._close)
        body = self.plain(text)
        if len(body) > limit:
            body = [*body[: limit // 2], *self.plain(" ... "), *body[len(body) - (limit - limit // 2) :]]
        return np.array([*close, *self.markup(self._opening), *body, *self.markup(self._after)], np.int32)

    def cut(self, text: str, limit: int) -> str:
        """`text` as `observation` would cut it, for who reads text."""
        body = self._plain(text)
        if len(body) <= limit:
            return text
        return f"{self.text(body[: limit // 2])} ... {self.text(body[len(body) - (limit - limit // 2) :])}"

    def turns(self, texts: Iterable[tuple[str, str]], limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(action_A, observation_O) of each (what the agent wrote, what answered it), each answer cut to `limit`."""
        for wrote, answer in texts:
            action_A = self.action(wrote)
            yield action_A, self.observation(answer, action_A, limit)

    def text(self, action_A: Sequence[int]) -> str:
        """What the model wrote, without special tokens."""
        return self.tokenizer.decode(list(action_A), skip_special_tokens=True)

    def markup(self, text: str) -> list[int]:
        """Token ids of a template's text, special tokens and all."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def plain(self, text: str) -> list[int]:
        """Token ids of anyone's text: what reads like a special token is spelt out."""
        if not text:
            return []
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
