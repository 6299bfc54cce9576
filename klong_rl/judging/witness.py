"""A sandbox whose reads and commands are kept, and one that gives them again without a container.

    Witness     wraps a sandbox (sandboxes.base.Sandbox): what the reward reads and runs becomes evidence
    Replayed    in the place of a sandbox that is gone: the same reads and commands get the same answers

A grading reads what nothing changes any more (`halt`), so the same question has the same answer; a reward that asks
what was never asked can't be computed from evidence, and is told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from klong_rl.blocking import in_thread
from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.record import Command, Read
from klong_rl.judging.store import Store


class NotKept(InfrastructureFailure):
    """The evidence of an earlier verdict doesn't hold what this reward needs."""


class Witness:
    """Everything that a sandbox has, with `reads` and `commands` kept in the order in which they ended."""

    def __init__(self, sandbox: Any, store: Store, is_fresh: bool = False) -> None:
        self._sandbox, self._store, self._is_fresh = sandbox, store, is_fresh
        self.reads: list[Read] = []
        self.commands: list[Command] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        try:
            data = await self._sandbox.read(path, limit=limit)
        except FileNotFoundError:
            self.reads.append(Read(path=path, limit=limit, blob=""))
            raise
        blob = await in_thread(self._store.put, data)
        self.reads.append(Read(path=path, limit=limit, blob=blob))
        return data

    async def exec(self, command: str, **options: Any) -> Any:
        result = await self._sandbox.exec(command, **options)
        output = await in_thread(self._store.put_text, result.output)
        self.commands.append(
            Command(
                command=command,
                exit_code=result.exit_code,
                output=output,
                timed_out=result.timed_out,
                truncated=result.truncated,
                interrupted=result.interrupted,
                is_fresh=self._is_fresh,
            )
        )
        return result


class ReplayedResult(msgspec.Struct, frozen=True, kw_only=True):
    """As sandboxes.base.ExecResult."""

    exit_code: int | None
    output: str
    truncated: bool
    timed_out: bool
    seconds: float
    interrupted: bool


class Replayed:
    """The answers that an earlier grading got. Raises NotKept for any other question."""

    def __init__(self, episode: str, reads: Sequence[Read], commands: Sequence[Command], store: Store) -> None:
        self.episode = episode
        self._reads = {read.path: read for read in sorted(reads, key=lambda read: read.limit)}  # the longest stays
        self._commands = {run.command: run for run in commands if not run.is_fresh}
        self._store = store

    async def halt(self) -> None:
        """Nothing runs."""

    async def forget(self) -> None:
        """There is no shell."""

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        kept = self._reads.get(path)
        if kept is None:
            raise NotKept(f"the file {path} was not read when {self.episode} was judged")
        if not kept.blob:
            raise FileNotFoundError(path)
        data = await in_thread(self._store.get, kept.blob)
        if len(data) == kept.limit < limit:
            raise NotKept(f"of the file {path}, {limit} bytes are asked for and {kept.limit} were read")
        return data[:limit]

    async def exec(self, command: str, *, timeout_s: float, output_limit: int = 16384) -> ReplayedResult:
        kept = self._commands.get(command)
        if kept is None:
            raise NotKept(f"the command {command[:80]!r} was not run when {self.episode} was judged")
        output = await in_thread(self._store.text, kept.output)
        return ReplayedResult(
            exit_code=kept.exit_code,
            output=output,
            truncated=kept.truncated,
            timed_out=kept.timed_out,
            seconds=0.0,
            interrupted=kept.interrupted,
        )

    async def write_many(self, files: dict[str, bytes]) -> None:
        raise NotKept(f"the container of {self.episode} is gone, and nothing can be written to evidence")

    async def write(self, path: str, data: bytes) -> None:
        await self.write_many({path: data})

    async def snapshot(self, tag: str) -> str:
        raise NotKept(f"the container of {self.episode} is gone, and no snapshot of it was kept (judge.keep_snapshots)")
