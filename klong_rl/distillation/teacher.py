"""Who acts: a model behind an endpoint, or a demonstrator by script."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol

from hydra.utils import instantiate

from klong_rl.distillation.config import TeacherConfig
from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.endpoint import Answer, Endpoint, Refused
from klong_rl.judging.protocols import Messages, Usage
from klong_rl.judging.store import Store
from klong_rl.tasks.base import Demonstrator
from klong_rl.types import Task

_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_TOO_LONG = re.compile(r"context.{0,20}(length|window)|maximum context|too long|too many tokens", re.IGNORECASE)


class ContextTooLong(Exception):
    """The endpoint counts more tokens than its context has: show it less."""


class TeacherRefused(Exception):
    """The model won't act on this task, asked several times."""


class Action(NamedTuple):
    """`text` is the command, or a part of it if it `is_cut`; `seconds` is what the answer took."""

    text: str
    thinking: str = ""
    is_cut: bool = False
    usage: Usage = Usage()
    seconds: float = 0.0


class Teacher(Protocol):
    name: str
    room_tokens: int  # that the messages may have, by which the context rule cuts

    async def act(self, task: Task, episode: str, index: int, messages: Messages) -> Action:
        """The action of turn `index`, after `messages`.

        Raises ContextTooLong, TeacherRefused, InfrastructureFailure.
        """


class EndpointTeacher:
    """Every valid answer is kept by its messages, episode and turn: who begins again pays for none twice."""

    def __init__(self, endpoint: Endpoint, config: TeacherConfig) -> None:
        self._endpoint, self._config = endpoint, config
        self.name = endpoint.name
        self.room_tokens = config.endpoint.context_tokens

    async def act(self, task: Task, episode: str, index: int, messages: Messages) -> Action:
        usage, refusal = Usage(), ""
        for number in range(1 + self._config.asked_again):
            # By the turn too: what a cut context shows may be what it showed before, and is a new question still.
            answer = await self._ask(messages, task.id, f"{episode}/{index}/{number}")
            usage += answer.usage
            if not answer.refusal and (answer.text.strip() or answer.is_cut):
                if not answer.is_cut:
                    await self._endpoint.keep(answer)
                return Action(command_of(answer.text), answer.thinking, answer.is_cut, usage, answer.seconds)
            refusal = answer.refusal or "an empty answer"
        raise TeacherRefused(f"{self.name} would not act on {task.id}: {' '.join(refusal.split())[:200]}")

    async def _ask(self, messages: Messages, group: str, sample: str) -> Answer:
        wait_s = self._config.wait_s
        try:
            async with asyncio.timeout(wait_s) as clock:
                return await self._endpoint.ask(messages, group, sample=sample)
        except Refused as refused:
            if refused.status in (400, 413, 422) and _TOO_LONG.search(refused.said):
                raise ContextTooLong(str(refused)) from refused
            raise
        except TimeoutError as error:
            if not clock.expired():
                raise
            trouble = f"; last trouble: {self._endpoint.trouble}" if self._endpoint.trouble else ""
            raise InfrastructureFailure(
                f"no answer of {self.name} within teacher.wait_s={wait_s:g}{trouble}"
            ) from error


class ScriptedTeacher:
    """The demonstrator's commands for the task, drawn anew for each episode; what they print the sandbox says."""

    room_tokens = 1 << 30

    def __init__(self, demonstrator: Demonstrator) -> None:
        self._demonstrator = demonstrator
        self.name = f"scripted {type(demonstrator).__name__}"

    async def act(self, task: Task, episode: str, index: int, messages: Messages) -> Action:
        turns: Sequence[tuple[str, str]] = self._demonstrator.demonstrate(task, random.Random(episode))
        return Action(turns[min(index, len(turns) - 1)][0])


def teacher_of(
    stack: AsyncExitStack, config: TeacherConfig, demonstrator: dict[str, Any], store: Store, role: str = "teacher"
) -> Teacher:
    """As configured; its endpoint is closed with `stack`. `role` is also the setting it is of. Raises UserError."""
    if config.kind == "scripted":
        return ScriptedTeacher(instantiate(demonstrator))
    endpoint = Endpoint(config.endpoint, store, role=role, key=f"{role}.endpoint")
    stack.push_async_callback(endpoint.close)
    return EndpointTeacher(endpoint, config)


def command_of(text: str) -> str:
    """An answer that is one block of code, and nothing else, is what is in it: so the policy learns the bare command.

    >>> command_of("```bash\\nls\\n```"), command_of("ls ")
    ('ls', 'ls')
    """
    match = _FENCE.match(text)
    return (match[1] if match else text).strip()
