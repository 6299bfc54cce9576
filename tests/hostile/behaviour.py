"""A hostile or clumsy behaviour of an agent, what has to come of it, and how it is played in a container."""

from __future__ import annotations

import asyncio
import re
from enum import Enum
from typing import NamedTuple

from klong_rl.types import Limits
from sandboxes.base import ExecResult, Sandbox
from sandboxes.docker import DockerSandboxes

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=256, pids=64, disk_mb=16)
DEADLINE_S = 150.0  # for one behaviour with all that follows it; a silent shell alone is waited for GRACE_S
BEFORE = "mkdir /work/here && cd /work/here && export A=kept && echo text > file"
WELL = 'pwd; echo "$A"; cat /work/here/file'


class Ends(Enum):
    """What the command is to the actor: always an observation, never a failure of the host or of the task."""

    EXIT = "an exit code"
    TIMEOUT = "killed at its timeout"
    SHELL_LOST = "it took its shell down"


class Behaviour(NamedTuple):
    """One command, and what has to come of it. What isn't named is left as it was: directory, environment, files."""

    name: str
    command: str
    ends: tuple[Ends, ...] = (Ends.EXIT,)
    exit_code: int | None = None  # None: any
    shows: str = ""  # a regular expression that its output matches somewhere
    before: str = ""  # an earlier command, which must succeed
    timeout_s: float = 10.0
    idle_s: float = 0.0  # between the command and what follows
    then: str = WELL  # a later command, which must succeed
    then_shows: str = r"\A/work/here\nkept\ntext\n\Z"
    then_timeout_s: float = 10.0
    patience: int = 1  # commands until `then` succeeds
    halted: bool = False  # only after `halt`, as a reward calls it
    limits: Limits = LIMITS


class Bystander:
    """A sandbox of the same run that minds its own business."""

    BEGIN = "export WHO=bystander; echo mine > /work/mine; sleep 86400 & echo $! > /work/job"
    CHECK = 'echo "$WHO $(cat /work/mine) $(ls /work | wc -l)"; kill -0 "$(cat /work/job)"'

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @classmethod
    async def begin(cls, factory: DockerSandboxes) -> Bystander:
        sandbox = await factory.create("bystander", 1, IMAGE, LIMITS)
        await sandbox.exec(cls.BEGIN, timeout_s=10)
        return cls(sandbox)

    async def check(self) -> None:
        result = await self._sandbox.exec(self.CHECK, timeout_s=20)
        assert (result.output, result.exit_code) == ("bystander mine 2\n", 0), f"the bystander suffered: {result}"


async def play(factory: DockerSandboxes, bystander: Bystander, behaviour: Behaviour) -> str:
    """Let it happen in a sandbox of its own, and check all that has to hold; the id of the container, now removed."""
    async with asyncio.timeout(DEADLINE_S):
        sandbox = await factory.create(behaviour.name, 1, IMAGE, behaviour.limits)
        try:
            await _succeed(sandbox, BEFORE)
            if behaviour.before:
                await _succeed(sandbox, behaviour.before)
            _check_end(behaviour, await sandbox.exec(behaviour.command, timeout_s=behaviour.timeout_s))
            await _check_after(behaviour, sandbox)
            await bystander.check()
        finally:
            await sandbox.close()
    return sandbox._id


async def _succeed(sandbox: Sandbox, command: str) -> None:
    result = await sandbox.exec(command, timeout_s=10)
    assert result.exit_code == 0, f"{command!r} before it: {result}"


def _check_end(behaviour: Behaviour, result: ExecResult) -> None:
    assert not result.interrupted, f"blamed on the host: {result}"
    assert how(result) in behaviour.ends, f"not {[end.value for end in behaviour.ends]}: {result}"
    if behaviour.exit_code is not None:
        assert result.exit_code == behaviour.exit_code, str(result)
    assert re.search(behaviour.shows, result.output), f"{behaviour.shows!r} isn't in it: {result}"


def how(result: ExecResult) -> Ends:
    if result.timed_out:
        return Ends.TIMEOUT
    return Ends.SHELL_LOST if result.exit_code is None else Ends.EXIT


async def _check_after(behaviour: Behaviour, sandbox: Sandbox) -> None:
    if behaviour.halted:
        await sandbox.halt()
    await asyncio.sleep(behaviour.idle_s)
    for _ in range(behaviour.patience):
        after = await sandbox.exec(behaviour.then, timeout_s=behaviour.then_timeout_s)
        if after.exit_code == 0:
            break
    assert after.exit_code == 0, f"{behaviour.then!r} after it: {after}"
    assert re.search(behaviour.then_shows, after.output), f"{behaviour.then_shows!r} isn't in it: {after}"
