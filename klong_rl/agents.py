"""Agents from outside: what a program that brings its own loop is given (docs/agents.md).

    async def run(episode, sandbox, base_url, key) -> None

An agent program is one async function, named by import path: `agent.program._target_=my_agent.run`. It is called once
for each episode, asks the policy through the OpenAI-compatible endpoint at `base_url` with `key`, acts in `sandbox`,
and returns when it is done. What else stands under `agent.program` are further keyword arguments of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from klong_rl.failures import InfrastructureFailure

T = TypeVar("T")

MODEL = "policy"  # what the endpoint calls the model; a request may name any


class EpisodeOver(Exception):
    """The episode has ended, by a limit or because it goes on elsewhere: nothing more can be done in it."""


class ProgramFailure(InfrastructureFailure):
    """The agent program raised: the episode is tried again, then dropped; it is never scored."""


@dataclass(frozen=True)
class AgentEpisode:
    """What an agent program is told of its episode. What only the reward may see isn't in it."""

    id: str
    task: str  # id of the task
    instruction: str
    system: str  # agent.system
    timeout_s: float  # active seconds: not those in which the engine takes new weights
    max_turns: int  # requests that are answered
    context_tokens: int  # of a request and its answer
    n_turns: int = 0  # made before, by a process that died: of a resumable program alone


class AgentProgram(Protocol):
    """An async function, or anything that is called like one."""

    def __call__(self, episode: AgentEpisode, sandbox: Any, base_url: str, key: str) -> Awaitable[None]:
        """Attempt the episode. Raises AgentFailure where the model's doing is at fault: then it is scored."""


def resumable(program: T) -> T:
    """Marks a program that can go on in a sandbox where its former process left off (`AgentEpisode.n_turns` says so).

    Without it, an episode whose process died starts again from its prompt in a fresh sandbox.
    """
    program.klong_resumable = True
    return program


def is_resumable(program: Any) -> bool:
    """Whether `resumable` marks it, keyword arguments bound to it or not."""
    return getattr(getattr(program, "func", program), "klong_resumable", False)


class BlockingSandbox:
    """A sandbox for code that isn't async and runs in another thread than the event loop: each call waits."""

    def __init__(self, sandbox: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._sandbox = sandbox
        self._loop = loop

    def exec(self, command: str, **options: Any) -> Any:
        return self._wait(self._sandbox.exec(command, **options))

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        return self._wait(self._sandbox.read(path, limit))

    def write(self, path: str, data: bytes) -> None:
        self._wait(self._sandbox.write(path, data))

    def _wait(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


async def in_own_thread(call: Callable[..., T], *args: Any) -> T:
    """`call(*args)` in a thread of its own: for an agent that isn't async, of which many run at once.

    A thread can't be ended from outside. One whose caller is cancelled is left behind, and ends by itself as its
    requests are refused and its sandbox raises EpisodeOver.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = call(*args)
        except BaseException as raised:
            error = raised if not isinstance(raised, StopIteration) else RuntimeError(repr(raised))
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="agent", daemon=True).start()
    return await ended
