"""An engine that says what it was told to: the agent loop and its tests without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np

from actors.engine import Reading, Sample
from klong_rl.chat import ChatFormat


class Hangs(str):
    """The beginning of an action whose rest never comes."""


class ScriptedEngine:
    """In the place of an `Engine`: each text of `script` in turn is an action; None is an action that never comes.

    A text that ends in the chat's end token is cut there, as by a model; any other is an action without one, cut at
    `max_tokens`. One that `Hangs` is said, and then nothing comes until it is given up. `pause_s` passes before each
    action, counted as the engine's own pause (new weights).
    """

    def __init__(self, chat: ChatFormat, script: Iterable[str | None], pause_s: float = 0.0) -> None:
        self._chat = chat
        self._script = iter(script)
        self._pause_s = pause_s
        self._paused_s = 0.0
        self.version = 0  # of the next action
        self.contexts: list[np.ndarray] = []  # that it was asked to go on from, in order
        self.aborted = 0  # requests that were cancelled

    async def sample(
        self, context_T: np.ndarray, max_tokens: int, temperature: float, reading: Reading | None = None
    ) -> Sample:
        """The next action, with log-probs -0.5, -1.5, ...; IndexError where the script has none left."""
        self.contexts.append(context_T)
        try:
            text = next(self._script)
        except StopIteration:
            raise IndexError(f"the script has ended, and an action {len(self.contexts)} was asked for") from None
        try:
            await asyncio.sleep(self._pause_s)
            self._paused_s += self._pause_s
            if reading is not None and reading.hear is not None and text:
                reading.hear(text.removesuffix(self._chat.end_token))
            if text is None or isinstance(text, Hangs):
                await (reading.give_up if reading and reading.give_up else asyncio.Event()).wait()
                self.aborted += 1
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        return self._sample(text, max_tokens)

    def paused_s(self) -> float:
        return self._paused_s

    def _sample(self, text: str | None, max_tokens: int) -> Sample:
        said = (text or "").removesuffix(self._chat.end_token)
        tokens_A = self._chat.action(said)
        tokens_A = (tokens_A if (text or "").endswith(self._chat.end_token) else tokens_A[:-1])[:max_tokens]
        logprobs_A = -0.5 - np.arange(len(tokens_A), dtype=np.float32)
        finish = "stop" if len(tokens_A) and tokens_A[-1] == self._chat.end_id else "length"
        if text is None or isinstance(text, Hangs):
            finish = "abort"
        return Sample(tokens_A, logprobs_A, ((self.version, len(tokens_A)),), finish, said)
