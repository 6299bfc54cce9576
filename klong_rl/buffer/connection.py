"""Thin I/O under the buffer: one deadline a call, retries with back-off inside it, refusals as typed errors.

A call is repeated until its deadline after a lost connection or while a fail-over lasts, though Redis may have carried
it out before the reply was lost; that is safe since every transition does nothing the second time. Whatever is not an
answer within the deadline is `Unavailable`, naming the call, the server and the last error.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from klong_rl.buffer.errors import (
    BufferFault,
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
from klong_rl.buffer.topology import KINDS, Script
from klong_rl.buffer.url import parse

T = TypeVar("T")

CALLS_AT_ONCE = 8  # of a process, a connection each; hundreds of actors with many episodes don't exhaust a server
ATTEMPTS = 3  # that fit in a deadline when no reply comes: a host that vanished must not use it up in one
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0  # back-off between attempts: a restarted local server is back within a second

# What may pass within the deadline, as a restart, a fail-over or a move of slots does.
_MAY_PASS = (
    exceptions.ConnectionError,  # also: the server loads its file, no Sentinel names a master
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.RedisClusterException,  # no node answers, or slots are not covered
)
_WONT_PASS = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    ssl.SSLCertVerificationError,
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


def _script(source: str) -> Script:
    return Script(source, hashlib.sha1(source.encode()).hexdigest())


_STAGE = _script('#!lua flags=allow-oom\nreturn redis.call("SET", KEYS[1], ARGV[1])')


def _scripts() -> dict[str, Script]:
    """Every transition by its name."""
    header = (_TRANSITIONS / "header.lua").read_text()
    scripts = {}
    for entry in _TRANSITIONS.iterdir():
        name, _, kind = entry.name.partition(".")
        if kind == "lua" and name != "header":
            flags = "" if name in _REFUSED_AT_THE_LIMIT else " flags=allow-oom"
            scripts[name] = _script(f"#!lua{flags}\n{header}{entry.read_text()}")
    return scripts


def _wont_pass(error: BaseException | None) -> BaseException | None:
    """What in an error, or in what it came from, no waiting mends: a log-in, a permission, a certificate."""
    while error is not None and not isinstance(error, _WONT_PASS):
        error = error.__cause__ or error.__context__
    return error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, exceptions.ResponseError) and str(error).startswith("NOREPLICAS"):
        return True  # too few replicas for min-replicas-to-write, as in the middle of a fail-over
    return isinstance(error, _MAY_PASS) and _wont_pass(error) is None


class Connection:
    """A pool of connections to the Redis of one run. It belongs to the event loop that first uses it."""

    def __init__(self, address: BufferAddress):
        url = parse(address.url)
        self.deadline_s = address.deadline_s
        self.where = url.shown
        self._prefix = f"klong:{{{address.run}}}:"
        self._server = KINDS[url.kind](url, address.deadline_s / ATTEMPTS)
        self._free = asyncio.Semaphore(CALLS_AT_ONCE)
        self._scripts = _scripts()

    def key(self, *parts: str | int) -> str:
        """The key of these parts, e.g. `klong:{run}:episode:ID`."""
        return self._prefix + ":".join(map(str, parts))

    async def load_scripts(self) -> None:
        """Makes the transitions known to Redis, lest the first of each sends all its windows twice."""
        await self.read("load_scripts", *(("SCRIPT LOAD", script.source) for script in self._scripts.values()))

    async def transition(
        self, name: str, *args: str | int | float | bytes, staged: Mapping[str, bytes] | None = None
    ) -> list[Any]:
        """What the script answers after its "OK". Raises the `Refused` it answers, or `Unavailable`.

        `staged` are large values, by the keys at which the script finds them. Redis' Lua hashes each byte of a string
        that it is handed, 1 ms a MB: several times what it takes to store it. So it isn't handed these.
        """
        answer = await self.attempt(name, lambda: self._run(self._scripts[name], args, staged))
        if answer[0] == b"OK":
            return answer[1:]
        kind, facts = _REFUSALS[answer[0]]
        raise kind(*(read(fact) for read, fact in zip(facts, answer[1:], strict=True)))

    async def _run(self, script: Script, args: Sequence[Any], staged: Mapping[str, bytes] | None) -> Any:
        if staged:
            mset = ("MSET", *(word for pair in staged.items() for word in pair))
            call = ("EVALSHA", script.sha, 1, self._prefix, *args)
            try:
                return (await self._server.send(self._prefix, (mset, call)))[1]
            except exceptions.OutOfMemoryError:  # what runs may finish; only a script can say so
                for key, value in staged.items():
                    await self._server.run(_STAGE, key, (value,))
            except exceptions.ResponseError:  # it isn't known there, or answers again what is wrong, in its own words
                pass
        return await self._server.run(script, self._prefix, args)

    async def read(self, what: str, *commands: tuple) -> list[Any]:
        """What these commands answer, sent at once. Raises `Unavailable`.

        Others may write between two of them: a MULTI would see one instant, but is refused at the memory limit.
        """
        if not commands:
            return []
        return await self.attempt(what, lambda: self._server.send(self._prefix, commands))

    async def attempt(self, what: str, do: Callable[[], Awaitable[T]]) -> T:
        """`do()`, repeated until answered. Raises `Unavailable` at the deadline, `Full` when Redis takes no writes."""
        last: list[Exception] = []

        async def once() -> T:
            async with self._free:
                return await do()

        async def remember(error: Exception) -> None:
            last[:] = [error]

        backoff = ExponentialWithJitterBackoff(base=FIRST_RETRY_S, cap=LAST_RETRY_S)
        retry = Retry(backoff, -1, (exceptions.RedisError, exceptions.RedisClusterException))
        try:
            async with asyncio.timeout(self.deadline_s):
                return await retry.call_with_retry(once, remember, _may_pass)
        except TimeoutError as error:
            cause = f"last error: {last[0]}" if last else "it accepted the call and didn't answer"
            raise Unavailable(
                f"{what}: waited {self.deadline_s:g} s for Redis at {self.where} ({cause}); "
                "check that it runs, then repeat the call"
            ) from error
        except (exceptions.RedisError, exceptions.RedisClusterException) as error:
            if (fault := self._fault(what, error)) is None:
                raise
            raise fault from error

    def _fault(self, what: str, error: Exception) -> BufferFault | None:
        """An error that no waiting mends, in the buffer's words; None if it isn't known."""
        at = f"{what}: {self.where}"
        if isinstance(error, exceptions.OutOfMemoryError):
            return Full(f"{at} is at its memory limit; wait for training, or raise it")
        if str(error).startswith("MISCONF"):
            return Full(f"{at} can't persist ({error}); free space on its disk")
        if str(error).startswith("MALFORMED"):
            return Malformed(what, str(error).removeprefix("MALFORMED ").split(" script: ")[0])
        if isinstance(error, exceptions.MovedError):
            return Unavailable(f"{at} is a node of a Cluster ({error}); use redis+cluster:// in buffer.url")
        reason = _wont_pass(error)
        if isinstance(reason, exceptions.NoPermissionError):
            return Unavailable(f"{at} forbids it ({reason}); docs/buffer.md has the rules that a user needs")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Unavailable(f"{at} can't be trusted ({reason}); name its authority by ssl_ca_certs= in buffer.url")
        return reason and Unavailable(f"{at} refuses the log-in ({reason}); check buffer.url")

    async def close(self) -> None:
        await self._server.close()
