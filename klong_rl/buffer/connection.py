"""Thin I/O under the buffer: one deadline a call, retries with back-off inside it, refusals as typed errors.

A call is repeated after a lost connection until its deadline, though Redis may have carried it out before the reply
was lost; that is safe since every transition does nothing the second time. Whatever is not an answer within the
deadline is `Unavailable`, naming the call, the server and the last error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from klong_rl.buffer.errors import (
    Committed,
    Conflict,
    Full,
    Malformed,
    OutOfSequence,
    Refused,
    StaleEpoch,
    Unavailable,
    Unknown,
    WrongState,
)
from klong_rl.buffer.records import BufferAddress

T = TypeVar("T")

CONNECTIONS = 8  # a process; an actor's many episodes share them, so that hundreds of actors don't exhaust the server
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0  # back-off between attempts: a restarted local server is back within a second

# For as long as a fail-over takes, a replica refuses writes (ReadOnlyError) or a cluster everything (ClusterDownError).
_RETRIED = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
)

# At the memory limit new episodes wait. What runs may finish and be trained, which is what frees memory.
_REFUSED_AT_THE_LIMIT = ("admit", "claim")
_TRANSITIONS = resources.files("klong_rl.buffer") / "transitions"


def _text(fact: bytes | int) -> str:
    return fact.decode() if isinstance(fact, bytes) else str(fact)


# First element of a script's answer -> the error, and how its facts are read.
_REFUSALS: dict[bytes, tuple[type[Refused], tuple[Callable[[Any], Any], ...]]] = {
    b"STALE": (StaleEpoch, (_text, int, int, _text)),
    b"OUT_OF_SEQUENCE": (OutOfSequence, (_text, int, int)),
    b"CONFLICT": (Conflict, (_text, _text)),
    b"WRONG_STATE": (WrongState, (_text, _text, _text)),
    b"COMMITTED": (Committed, (int, int)),
    b"UNKNOWN": (Unknown, (_text, _text)),
}


def _sources() -> dict[str, str]:
    """The Lua source of every transition, by its name."""
    header = (_TRANSITIONS / "header.lua").read_text()
    sources = {}
    for entry in _TRANSITIONS.iterdir():
        name, _, kind = entry.name.partition(".")
        if kind == "lua" and name != "header":
            flags = "" if name in _REFUSED_AT_THE_LIMIT else " flags=allow-oom"
            sources[name] = f"#!lua{flags}\n{header}{entry.read_text()}"
    return sources


class Connection:
    """A pool of connections to the Redis of one run. It belongs to the event loop that first uses it."""

    def __init__(self, address: BufferAddress):
        self.deadline_s = address.deadline_s
        self.where = re.sub(r"//[^@/]*@", "//", address.url)  # no password in an error
        self._prefix = f"klong:{{{address.run}}}:"
        pool = BlockingConnectionPool.from_url(
            address.url,
            max_connections=CONNECTIONS,
            timeout=address.deadline_s,
            socket_timeout=address.deadline_s,
            socket_connect_timeout=address.deadline_s,
            retry=Retry(NoBackoff(), 0),  # `attempt` retries, and remembers why
        )
        self.redis = Redis.from_pool(pool)
        self._scripts = {name: self.redis.register_script(source) for name, source in _sources().items()}

    def key(self, *parts: str | int) -> str:
        """The key of these parts, e.g. `klong:{run}:episode:ID`."""
        return self._prefix + ":".join(map(str, parts))

    async def load_scripts(self) -> None:
        """Makes the transitions known to Redis, lest the first of each sends all its windows twice."""
        await self.read("load_scripts", *(("SCRIPT LOAD", script.script) for script in self._scripts.values()))

    async def transition(self, name: str, *args: str | int | float | bytes) -> list[Any]:
        """What the script answers after its "OK". Raises the `Refused` it answers, or `Unavailable`."""
        script = self._scripts[name]
        answer = await self.attempt(name, lambda: script(keys=[self._prefix], args=args))
        if answer[0] == b"OK":
            return answer[1:]
        kind, facts = _REFUSALS[answer[0]]
        raise kind(*(read(fact) for read, fact in zip(facts, answer[1:], strict=True)))

    async def read(self, what: str, *commands: tuple) -> list[Any]:
        """What these commands answer, sent at once. Raises `Unavailable`.

        Others may write between two of them: a MULTI would see one instant, but is refused at the memory limit.
        """

        async def execute() -> list[Any]:
            pipe = self.redis.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()

        return await self.attempt(what, execute) if commands else []

    async def attempt(self, what: str, do: Callable[[], Awaitable[T]]) -> T:
        """`do()`, repeated until answered. Raises `Unavailable` at the deadline, `Full` when Redis takes no writes."""
        last: list[Exception] = []

        async def remember(error: Exception) -> None:
            last[:] = [error]

        def may_pass(error: Exception) -> bool:
            return not isinstance(error, exceptions.AuthenticationError)  # which is a ConnectionError to redis-py

        retry = Retry(ExponentialWithJitterBackoff(base=FIRST_RETRY_S, cap=LAST_RETRY_S), -1, _RETRIED)
        try:
            async with asyncio.timeout(self.deadline_s):
                return await retry.call_with_retry(do, remember, may_pass)
        except TimeoutError as error:
            cause = f"last error: {last[0]}" if last else "it accepted the call and didn't answer"
            raise Unavailable(
                f"{what}: waited {self.deadline_s:g} s for Redis at {self.where} ({cause}); "
                "check that it runs, then repeat the call"
            ) from error
        except exceptions.AuthenticationError as error:
            raise Unavailable(f"{what}: {self.where} refuses the log-in ({error}); check buffer.url") from error
        except exceptions.OutOfMemoryError as error:
            raise Full(f"{what}: {self.where} is at its memory limit; wait for training, or raise it") from error
        except exceptions.ResponseError as error:
            if str(error).startswith("MISCONF"):
                raise Full(f"{what}: {self.where} can't persist ({error}); free space on its disk") from error
            if str(error).startswith("MALFORMED"):
                raise Malformed(what, str(error).removeprefix("MALFORMED ").split(" script: ")[0]) from error
            raise

    async def close(self) -> None:
        await self.redis.aclose(close_connection_pool=True)
