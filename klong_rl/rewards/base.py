"""A reward: one async function `(episode, sandbox, judge) -> Verdict`, named in config by import path.

`episode` is what was attempted and how it ended; `sandbox` is the container it left behind (sandboxes.base.Sandbox);
`judge` asks a judge model, gives a fresh container of what the episode left, and keeps evidence.
A reward that can't be computed raises: `TaskFailure` if the task is at fault, `InfrastructureFailure` if we are. It
never returns a low score for a failure of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from klong_rl.types import EpisodeSpec, Outcome, Verdict

T = TypeVar("T")


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode as it waits to be judged."""

    spec: EpisodeSpec
    outcome: Outcome


class Judge(Protocol):
    """What a reward may use beside the sandbox. All that goes through it is kept as evidence of the verdict."""

    room_tokens: int  # that the messages of one `ask` may have

    async def ask(self, messages: list[dict[str, str]], parse: Callable[[str], T], about: str = "") -> T:
        """What `parse` makes of the judge model's reply to chat messages; `about` names the question in the record.

        `parse` raises ValueError for a reply that is invalid, with what to tell the model, which is then asked again, a
        few times. Raises InfrastructureFailure where none is valid, or the model can't be reached.
        """

    def fresh(self, image: str = "") -> AbstractAsyncContextManager[Any]:
        """A new sandbox with the files of the episode's as they are now, and no process of the agent's; removed after.

        With `image` one of that image, and nothing of the agent's. The sandbox must not be written to between two of
        them. Raises InfrastructureFailure.
        """

    async def keep(self, name: str, data: bytes) -> str:
        """Keep `data` as evidence under `name`; its SHA-256."""


Reward = Callable[[FinishedEpisode, Any, Judge], Awaitable[Verdict]]
