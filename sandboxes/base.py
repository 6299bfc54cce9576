"""What a sandbox is, on one page: the Protocols, the result of a command, and the three ways to fail.

Invariants that every implementation holds:

- A sandbox belongs to one episode and outlives the process that made it: another process adopts it by its episode.
- It has one owner, the last that made or adopted it. What an earlier owner still sends to it has no effect.
- It outlives its host's daemon too: files stay, a command that ran is reported as interrupted and never run again.
- A command never outlives its timeout, its output never outgrows its limit, and neither breaks the shell: the working
  directory and the exported environment carry over to the next command.
- What an agent does to its own sandbox is a result; what happens to the host is a failure. The two are never mixed.
- Operations on one sandbox run one after the other; operations on different sandboxes run side by side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.types import Limits

__all__ = [
    "Adopted",
    "AgentFailure",
    "ExecResult",
    "HostAway",
    "InfrastructureFailure",
    "Sandbox",
    "SandboxFactory",
    "TaskFailure",
]


class HostAway(InfrastructureFailure):
    """What holds the sandbox can't be reached. The sandbox may be well: adopt it later rather than make another."""


class Adopted(InfrastructureFailure):
    """The sandbox has another owner now: nothing that was asked of it since has had an effect."""


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command did.

    `exit_code` is None when the shell could not report one: the command timed out, took its own shell down, or was
    `interrupted`: its container or the way to it was lost. Then it may have run in part, or to its end.
    `stdout` holds both streams as a terminal shows them, unless they were asked for apart. Of a stream that was
    `truncated`, it is the first and last bytes around a note of how many are missing.
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes = b""
    truncated: bool
    timed_out: bool
    seconds: float  # wall-clock, from sending the command to its reply
    interrupted: bool = False

    @property
    def output(self) -> str:
        """All that was printed, as UTF-8 with U+FFFD for what isn't."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


class Sandbox(Protocol):
    """One machine of one episode. Every method may raise InfrastructureFailure."""

    episode: str

    async def exec(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit: int = 16384,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: str = "",
        apart: bool = False,
    ) -> ExecResult:
        """Run any text as a shell command; killed with all that it began after `timeout_s`.

        With `env` (variables beside the session's) or `cwd` (relative to the session's directory) the command is on its
        own: what it exports and where it goes doesn't carry over. With `apart`, stderr is kept apart from stdout, and
        `output_limit` bytes at most of each; its file counts as a file of the sandbox's, against its limits.
        """

    async def write(self, path: str, data: bytes) -> None:
        """Write one file, as `write_many`."""

    async def write_many(self, files: dict[str, bytes]) -> None:
        """Write files at paths relative to the working directory, parents made, in one round trip.

        Raises ValueError for a path that leaves the working directory. Where they can't be written: TaskFailure
        before an agent ran anything in the sandbox, AgentFailure after that.
        """

    async def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first `limit` bytes of a regular file, `path` relative to the working directory or absolute.

        Raises FileNotFoundError where there is none, AgentFailure where there is one that can't be read.
        """

    async def halt(self) -> None:
        """End every process of the agent, background ones too, and forget the shell's directory and environment.

        Files stay. From here on nothing of the agent's runs but what a command starts: for a reward that trusts what
        it reads and runs.
        """

    async def forget(self) -> None:
        """Forget the shell's directory and environment: the next command begins as the first did. Processes go on."""

    async def snapshot(self, tag: str) -> str:
        """Keep the file system under `tag`; the id returned is an image for `SandboxFactory.create`.

        Working directory and exported environment come with it, processes don't. It waits for a command of this
        owner; where one was cancelled and still runs, the files are as they are at one moment of it.
        """

    async def release(self) -> None:
        """Let go of the sandbox, which stays as it is for whoever adopts it."""

    async def close(self) -> None:
        """Remove the sandbox and all in it. Idempotent."""


class SandboxFactory(Protocol):
    """Makes, finds again and removes the sandboxes of one run."""

    async def prepare(self, image: str) -> None:
        """Have the image that a task names at hand, built or pulled if need be: before anyone's clock runs.

        Without it `create` does so. Raises TaskFailure where it can't be built, else InfrastructureFailure.
        """

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> Sandbox:
        """A fresh sandbox; `epoch` is the fencing number of the claim that it is made under."""

    async def adopt(self, episode: str) -> Sandbox | None:
        """The sandbox of an episode, whichever process made it, started again if it stopped; None if it has none.

        A command still running in it is killed, and earlier owners are shut out: their calls raise Adopted from here
        on, and their `close` and `release` leave the sandbox alone. Raises AgentFailure when the agent broke it for
        good, InfrastructureFailure when it can't be used for other reasons; HostAway when that may pass.
        """

    async def reap(self, keep: set[str], *, snapshots: bool = True) -> list[str]:
        """Remove the sandboxes and snapshots of this run's episodes that aren't in `keep`; those episodes, sorted.

        Of an episode in `keep`, the newest sandbox and all snapshots stay; with `snapshots` False, all snapshots do.
        Never touches another run's.
        """

    async def make_room(self, sandbox: Sandbox, needed: Callable[[], Awaitable[set[str]]]) -> None:
        """For one more snapshot of `sandbox`: where they are over the quota, remove the oldest that aren't `needed`.

        `needed` is asked only then. Raises InfrastructureFailure where the others alone are over it.
        """

    async def forget_snapshots(self, episode: str, keep: str = "") -> int:
        """Remove an episode's snapshots but `keep` and those that a sandbox still runs from; how many were removed."""

    def census(self) -> dict[str, dict[str, int]]:
        """Sandboxes that this process has a shell in, by host: "held" by an episode, or made "ahead"."""

    async def close(self) -> None:
        """Let go of connections and threads. Sandboxes stay, to be adopted: closing those is `Sandbox.close`."""
