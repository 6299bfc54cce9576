"""What a sandbox is, on one page: the Protocols, the result of a command, and the three ways to fail.

Invariants that every implementation holds:

- A sandbox belongs to one episode and outlives the process that made it: another process adopts it by its episode.
- A command never outlives its timeout, its output never outgrows its limit, and neither breaks the shell: the working
  directory and the exported environment carry over to the next command.
- What an agent does to its own sandbox is a result; what happens to the host is a failure. The two are never mixed.
- Operations on one sandbox run one after the other; operations on different sandboxes run side by side.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.types import Limits

__all__ = ["AgentFailure", "ExecResult", "InfrastructureFailure", "Sandbox", "SandboxFactory", "TaskFailure"]


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command did.

    `exit_code` is None when the shell could not report one: the command timed out, or took its own shell down.
    `output` is stdout and stderr interleaved as a terminal shows them, UTF-8 with U+FFFD for what isn't, and, when
    `truncated`, its first and last bytes around a note of how many are missing.
    """

    exit_code: int | None
    output: str
    truncated: bool
    timed_out: bool
    seconds: float  # wall-clock, from sending the command to its reply


class Sandbox(Protocol):
    """One machine of one episode. Every method may raise InfrastructureFailure."""

    episode: str

    async def exec(self, command: str, *, timeout_s: float, output_limit: int = 16384) -> ExecResult:
        """Run any text as a shell command, stdin empty; killed with its process group after `timeout_s`."""

    async def write(self, path: str, data: bytes) -> None:
        """Write one file, as `write_many`."""

    async def write_many(self, files: dict[str, bytes]) -> None:
        """Write files at paths relative to the working directory, parents made, in one round trip.

        Raises ValueError for a path that leaves the working directory, TaskFailure where they can't be written.
        """

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first `limit` bytes of a regular file, `path` relative to the working directory or absolute.

        Raises FileNotFoundError where there is none, AgentFailure where there is one that can't be read.
        """

    async def snapshot(self, tag: str) -> str:
        """Keep the file system under `tag`; the id returned is an image for `SandboxFactory.create`."""

    async def release(self) -> None:
        """Let go of the sandbox, which stays as it is for whoever adopts it."""

    async def close(self) -> None:
        """Remove the sandbox and all in it. Idempotent."""


class SandboxFactory(Protocol):
    """Makes, finds again and removes the sandboxes of one run."""

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> Sandbox:
        """A fresh sandbox; `epoch` is the fencing number of the claim that it is made under."""

    async def adopt(self, episode: str) -> Sandbox | None:
        """The sandbox of an episode, whichever process made it; a command still running in it is killed."""

    async def reap(self, keep: set[str]) -> list[str]:
        """Remove this run's sandboxes whose episode isn't in `keep`; the episodes removed. Never another run's."""

    async def close(self) -> None:
        """Let go of connections and threads. Sandboxes stay, to be adopted: closing those is `Sandbox.close`."""
