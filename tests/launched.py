"""Small whole runs for integration and chaos tests, and the proof that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "KLONG_TEST_RUN"  # in the environment of a launch, and so of every process that it starts

# A whole run in miniature: two stages, real parts, a cold start too short to be any good.
MINIATURE = (
    "cold_start.steps=3",
    "cold_start.windows_per_step=4",
    "evaluation.episodes=2",
    "rollout.groups_per_step=1",
    "rollout.group_size=2",
    "actors.episodes=4",
    "learner.checkpoint_every=1",
    "curriculum.stages=[{difficulty:1,timeout_s:20,max_turns:2,steps:2},{difficulty:2,timeout_s:30,max_turns:3,steps:2}]",
)


@dataclass
class LaunchedRun:
    """One `python -m klong_rl.launch`, or another entry point, in a process group of its own, its output in a file."""

    overrides: tuple[str, ...]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    module: str = "klong_rl.launch"

    def start(self) -> LaunchedRun:
        env = os.environ | {MARK: self.mark} | self.env
        command = [sys.executable, "-m", self.module, *self.overrides]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
            )
        return self

    def finish(self, deadline_s: float) -> int:
        """The exit code."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within {deadline_s:.0f} s:\n{self.output()[-3000:]}") from None

    def wait_for(self, text: str, deadline_s: float) -> None:
        """Until `text` is in the output."""
        until = time.monotonic() + deadline_s
        while text not in self.output():
            assert self.process.poll() is None, f"the run ended before {text!r}:\n{self.output()[-3000:]}"
            assert time.monotonic() < until, f"no {text!r} within {deadline_s:.0f} s:\n{self.output()[-3000:]}"
            time.sleep(0.1)

    def signal_group(self, number: int) -> None:
        """As a terminal does it: to every process of the group."""
        os.killpg(self.process.pid, number)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Command line by process id of the live processes that descend from this launch."""
        wanted, found = f"{MARK}={self.mark}".encode(), {}
        root = self.overrides[0].removeprefix("root=")
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                # Redis writes its title over its environment; the title names its socket.
                is_redis = "redis-server" in command and f"{root}/" in command
                if is_redis or wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = command
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked
        return found

    def kill_process(self, name: str) -> None:
        """SIGKILL to the first process whose command line begins with `name`; there must be one."""
        pids = [pid for pid, command in self.processes().items() if command.startswith(name)]
        assert pids, f"no process {name!r} among {self.processes()}"
        os.kill(pids[0], signal.SIGKILL)

    def wait_until_gone(self, deadline_s: float) -> None:
        """Until no process of this launch is left."""
        until = time.monotonic() + deadline_s
        while left := self.processes():
            assert time.monotonic() < until, f"still there after {deadline_s:.0f} s: {left}"
            time.sleep(0.2)

    def kill(self) -> None:
        """Whatever is left, for the sake of the next test."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


def containers_of(run_dir: Path) -> list[str]:
    """Names of the containers, running or not, that belong to a run directory."""
    import docker

    from klong_rl.launch import run_id

    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": f"klong.run={run_id(run_dir)}"})
        return [container["Names"][0] for container in found]
    finally:
        client.close()
