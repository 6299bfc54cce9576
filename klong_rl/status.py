"""`python -m klong_rl.status run=DIR [watch=true]`: what the buffer of a run holds, while the run is up or down.

    up     the run's own Redis answers
    down   a private server reads a copy of DIR's append-only file, in a temporary directory that goes with it

Nothing of the run is changed, and nothing in DIR is written. `watch=true` looks again each second until Ctrl-C, and
follows a run that starts or ends meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live

from klong_rl.buffer import BufferAddress, EmbeddedRedis, ServerFault, Unavailable
from klong_rl.buffer.connection import Connection
from klong_rl.buffer.reader import Reader
from klong_rl.buffer.server import AOF_FOLDER, FOLDER
from klong_rl.buffer.socket_path import listening
from klong_rl.cli import run_main
from klong_rl.errors import UserError
from klong_rl.interrupt import EXIT_CODES, Interrupts
from klong_rl.launch import run_id
from klong_rl.monitor.fleet_file import read_fleet
from klong_rl.monitor.look import Look, render
from klong_rl.preflight import CONFIG_FILE

REFRESH_S = 1.0
DEADLINE_S = 10.0  # for one answer: a person waits for it
USAGE = "use run=DIR, the directory of a run, for example run=runs/nano-seed0, and watch=true to look again each second"


class Place(NamedTuple):
    """Where a run's buffer is to be read. Without a URL it is down: `folder` holds what it left."""

    url: str
    folder: Path


def main(arguments: Sequence[str]) -> int:
    """Show it; the exit code."""
    run_dir, watch = parse(arguments)
    try:
        return asyncio.run(_show(run_dir, watch))
    except (ServerFault, Unavailable) as fault:
        raise UserError(str(fault)) from fault


def parse(arguments: Sequence[str]) -> tuple[Path, bool]:
    """The run directory, and whether to go on looking. Raises UserError."""
    given = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in ("run", "watch") or not value:
            raise UserError(f"{argument} is not understood; {USAGE}")
        given[key] = value
    if "run" not in given:
        raise UserError(f"no run is named; {USAGE}")
    if given.get("watch", "false") not in ("true", "false"):
        raise UserError(f"watch={given['watch']} is not understood; {USAGE}")
    return Path(given["run"]).resolve(), given.get("watch") == "true"


def find(run_dir: Path) -> Place:
    """Where the buffer of `run_dir` is now. Raises UserError if there is none."""
    folder, config = run_dir / FOLDER, run_dir / CONFIG_FILE
    if not run_dir.is_dir():
        raise UserError(f"run={run_dir} doesn't exist; {USAGE}")
    url = json.loads(config.read_text())["buffer"]["url"] if config.exists() else ""
    if url:
        return Place(url, folder)
    if not (folder / AOF_FOLDER).is_dir():
        raise UserError(f"run={run_dir} holds no {FOLDER}/{AOF_FOLDER}, so it isn't a run that was launched; {USAGE}")
    return Place(listening(folder) or "", folder)


async def take_look(reader: Reader, run_dir: Path, source: str) -> Look:
    """Read all that `Look` holds, in a few round trips."""
    leases = {step: await reader.refs(*groups) for step, groups in (await reader.leases()).items()}
    return Look(
        run=run_dir.name,
        source=source,
        at=time.time(),
        counts=await reader.counts(),
        in_progress=await reader.in_progress(),
        policy_version=await reader.policy_version(),
        committed_step=await reader.committed_step(),
        n_complete=await reader.n_complete(),
        n_consumed=await reader.n_consumed(),
        ready=await reader.refs(*await reader.ready_groups()),
        leases=leases,
        memory=await reader.memory(),
        pacing=read_fleet(run_dir).get("pacing", {}),
    )


@asynccontextmanager
async def opened(place: Place, run: str) -> AsyncIterator[tuple[Reader, str]]:
    """A reader of the buffer at `place`, and in words what it reads."""
    async with AsyncExitStack() as stack:
        url, source = place.url, "the Redis of the run"
        if not url:
            url = stack.enter_context(_copy(stack, place.folder)).url
            source = "a copy of its append-only file: the run is down"
        connection = Connection(BufferAddress(url, run, DEADLINE_S))
        stack.push_async_callback(connection.close)
        yield Reader(connection), source


def _copy(stack: AsyncExitStack, folder: Path) -> EmbeddedRedis:
    """A server, not started, for a copy of `folder`'s append-only file: Redis writes to the one that it reads."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klong-status-")))
    try:
        shutil.copytree(folder / AOF_FOLDER, scratch / FOLDER / AOF_FOLDER)
    except OSError as error:
        raise UserError(f"{folder / AOF_FOLDER} can't be copied to {scratch}: {error}") from error
    return EmbeddedRedis(scratch)


async def _show(run_dir: Path, watch: bool) -> int:
    interrupts = Interrupts()
    interrupts.arm()
    console = Console()
    try:
        if watch:
            await _watch(run_dir, console)
        async with opened(find(run_dir), run_id(run_dir)) as (reader, source):
            console.print(render(await take_look(reader, run_dir, source)))
    except asyncio.CancelledError:
        if not interrupts.came:
            raise
        return 0 if watch else EXIT_CODES[interrupts.came[0]]
    return 0


async def _watch(run_dir: Path, console: Console) -> None:
    """Until it is cancelled. A buffer that comes or goes is opened anew."""
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            place = find(run_dir)
            async with opened(place, run_id(run_dir)) as (reader, source):
                while find(run_dir) == place:
                    try:
                        look = await take_look(reader, run_dir, source)
                    except Unavailable:
                        if find(run_dir) == place:
                            raise
                        break  # the run ended as we asked
                    live.update(render(look), refresh=True)
                    await asyncio.sleep(REFRESH_S)


if __name__ == "__main__":
    run_main(main)
