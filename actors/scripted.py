"""An engine that says what it was told to: the agent loop and its tests without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np

from actors.engine import Sample
from klong_rl.chat import ChatFormat


class ScriptedEngine:
    """In the place of an `Engine`: each text of `script` in turn is an action; None is an action that never comes.

    A text that ends in the chat's end token is cut there, as by a model; any other is an action without one, cut at
    `max_tokens`. `pause_s` passes before each action, counted as the engine's own pause (new weights).
    """

    def __init__(self, chat: ChatFormat, script: Iterable[str | None], pause_s: float = 0.0) -> None:
        self._chat = chat
        self._script = iter(script)
        self._pause_s = pause_s
        self._paused_s = 0.0
        self.version = 0  # of the next action
        self.contexts: list[np.ndarray] = []  # that it was asked to go on from, in order
        self.aborted = 0  # requests that were cancelled

    async def sample(self, context_T: np.ndarray, max_tokens: int, temperature: float) -> Sample:
        """The next action, with log-probs -0.5, -1.5, ...; IndexError where the script has none left."""
        self.contexts.append(context_T)
        try:
            text = next(self._script)
        except StopIteration:
            raise IndexError(f"the script has ended, and an action {len(self.contexts)} was asked for") from None
        try:
            await asyncio.sleep(self._pause_s)
            self._paused_s += self._pause_s
            if text is None:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        return self._sample(text, max_tokens)

    def paused_s(self) -> float:
        return self._paused_s

    def _sample(self, text: str, max_tokens: int) -> Sample:
        tokens_A = self._chat.action(text.removesuffix(self._chat.end_token))
        tokens_A = (tokens_A if text.endswith(self._chat.end_token) else tokens_A[:-1])[:max_tokens]
        logprobs_A = -0.5 - np.arange(len(tokens_A), dtype=np.float32)
        finish = "stop" if tokens_A[-1] == self._chat.end_id else "length"
        return Sample(tokens_A, logprobs_A, ((self.version, len(tokens_A)),), finish)
