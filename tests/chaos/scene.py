"""One run under attack: its launches, its processes, its containers, and what progress it makes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import docker
import psutil

from klong_rl.buffer import BufferAddress, Unavailable, Unknown
from klong_rl.buffer.connection import Connection
from klong_rl.buffer.reader import Reader
from klong_rl.buffer.server import AOF_FOLDER, FOLDER
from klong_rl.buffer.socket_path import listening
from klong_rl.launch import run_id
from tests.chaos.aof import MANIFEST, increment
from tests.chaos.evidence import LEDGER_FILE
from tests.launched import LaunchedRun
from tests.private_dockerd import PrivateDockerd

LOOK_S = 0.2  # between two looks: short against any recovery
ANSWER_S = 2.0  # for Redis to answer a look; it may just have been killed
DOCKER_S = 60.0  # for one call of the daemon

# A whole run on the real parts: episodes of several turns, so that a kill finds them in the middle; a checkpoint every
# other step, so that a restore has something to undo; commands that take their time, so that kills find them running.
STAGES = ((4, 10, 8), (6, 14, 10))  # difficulty, turns, steps
STEPS = sum(steps for *_, steps in STAGES)
MAX_STALENESS = 1
SETTINGS = (
    "evaluation.episodes=4",
    "rollout.groups_per_step=2",
    "rollout.group_size=4",
    f"rollout.max_staleness={MAX_STALENESS}",
    "rollout.step_timeout_s=400",
    "actors.episodes=16",
    "sandbox.snapshot_every_s=1",
    "learner.checkpoint_every=2",
    "curriculum.stages=["
    + ",".join(f"{{difficulty:{d},timeout_s:60,max_turns:{turns},steps:{steps}}}" for d, turns, steps in STAGES)
    + "]",
)


class RunEnded(Exception):
    """The run ended as it should not have: early, with an error, or leaving something behind."""


class NoRecovery(Exception):
    """The run didn't make the progress that a fault stopped, by the deadline."""


class Pulse(NamedTuple):
    """One look at the run: numbers that only grow while it makes progress."""

    appended: int  # segments ever appended
    verdicts: int
    trained: int  # the newest version that a surviving step was trained from
    version: int  # the newest policy version


class Moment(NamedTuple):
    """When something was done to the run: on our clock, and by where its append-only file ended then."""

    at: float
    position: int


@dataclass
class Scene:
    """`root` holds everything of the run; `daemon` is the one that its containers are on."""

    root: Path
    name: str
    cache: Path
    daemon: PrivateDockerd
    launches: list[LaunchedRun] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.root / self.name

    @property
    def launch(self) -> LaunchedRun:
        """The newest one."""
        return self.launches[-1]

    def start(self) -> None:
        """Launch the run, the first time or again."""
        log = self.root / f"{self.name}-launch-{len(self.launches)}.log"
        overrides = (f"root={self.root}", f"name={self.name}", f"cache={self.cache}", *SETTINGS)
        self.launches.append(LaunchedRun(overrides, log, {"DOCKER_HOST": self.daemon.host}).start())

    def stop(self) -> None:
        """End whatever is left of the run: nothing, if it ended as it should."""
        self.launch.kill()
        for launch in self.launches:
            for pid in launch.processes():
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(pid, signal.SIGKILL)

    async def leaves_nothing(self, deadline_s: float) -> None:
        """Waits until no process of any launch is left. Raises RunEnded if some are, or a container is."""
        for launch in self.launches:
            try:
                await asyncio.to_thread(launch.wait_until_gone, deadline_s)
            except AssertionError as left:
                raise RunEnded(f"{self.run_dir} finished and left processes behind: {left}") from None
        api = self.docker()
        try:
            label = f"klong.run={run_id(self.run_dir)}"
            left = [box["Names"][0] for box in api.containers(all=True, filters={"label": label})]
        finally:
            api.close()
        if left:
            raise RunEnded(f"{self.run_dir} finished and left containers behind: {left}")

    # What it does

    def ended(self) -> bool:
        """True once the run has ended well. Raises RunEnded if it ended otherwise."""
        code = self.launch.process.poll()
        if code:
            raise RunEnded(f"{self.run_dir} ended with exit code {code}:\n{self.launch.output()[-4000:]}")
        return code == 0

    async def ask(self, question: Callable[[Reader], Awaitable[Any]]) -> Any:
        """The answer of the run's buffer to one question; None while its Redis doesn't answer."""
        url = listening(self.run_dir / FOLDER) if (self.run_dir / FOLDER).is_dir() else None
        if url is None:
            return None
        connection = Connection(BufferAddress(url, run_id(self.run_dir), ANSWER_S))
        try:
            return await question(Reader(connection))
        except Unavailable:
            return None
        finally:
            await connection.close()

    async def pulse(self) -> Pulse | None:
        """A look at the run, or None while its Redis doesn't answer."""

        async def look(reader: Reader) -> Pulse:
            counts = await reader.counts()
            verdicts = sum(n for outcomes in counts.outcomes.values() for n in outcomes.values())
            version = await reader.policy_version()
            return Pulse(counts.appended.get("segments", 0), verdicts, self._trained("version"), version)

        return await self.ask(look)

    def steps_done(self) -> int:
        """Learner steps that the run has behind it."""
        return self._trained("step")

    def _trained(self, what: str) -> int:
        """A number of the ledger's last whole line, 0 before the first."""
        path = self.run_dir / LEDGER_FILE
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])[what] if lines else 0

    async def standing(self, episode: str) -> tuple[str, int] | None:
        """(state, segments) of an episode; ("archived", 0) once it is; None while Redis doesn't answer."""

        async def look(reader: Reader) -> tuple[str, int]:
            try:
                view = await reader.episode(episode)
            except Unknown:
                return "archived", 0
            return view.state, view.n_segments

        return await self.ask(look)

    def moment(self) -> Moment:
        """Now."""
        folder = self.run_dir / FOLDER / AOF_FOLDER
        return Moment(time.monotonic(), increment(folder).stat().st_size if (folder / MANIFEST).exists() else 0)

    # Its parts

    def processes(self, title: str) -> list[psutil.Process]:
        """The live processes of the newest launch whose command line begins so."""
        found = []
        for pid, command in self.launch.processes().items():
            if command.startswith(title):
                try:
                    found.append(psutil.Process(pid))
                except psutil.NoSuchProcess:
                    continue  # it ended while we looked
        return [process for process in found if not is_gone(process)]

    def docker(self) -> docker.APIClient:
        """A client of the run's daemon; close it."""
        return docker.APIClient(self.daemon.host, timeout=DOCKER_S)

    async def until(self, what: str, happened: Callable[[], Awaitable[bool]], deadline_s: float) -> float:
        """Seconds until `happened()`, or until the run ended well. Raises NoRecovery, RunEnded."""
        began = time.monotonic()
        while not await happened() and not self.ended():
            if time.monotonic() - began > deadline_s:
                seen = f"{await self.pulse()}, its processes {self.launch.processes()}"
                said = self.launch.output()[-4000:]
                raise NoRecovery(f"{what}: not within {deadline_s:g} s; last seen: {seen}; the run says:\n{said}")
            await asyncio.sleep(LOOK_S)
        return time.monotonic() - began


def is_gone(process: psutil.Process) -> bool:
    """True for a process that has ended, whether or not its parent has noticed."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
