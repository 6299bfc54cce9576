"""The dashboard beside a run: a process of its own, so that whoever looks takes nothing of the driver's time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from klong_rl.errors import UserError

START_S = 60.0  # its imports, on a machine that starts a run meanwhile
END_S = 10.0


@asynccontextmanager
async def served(run_dir: Path) -> AsyncIterator[str]:
    """Serve the page of a run; yields the line that says where.

    It ends with the context, and when this process dies: its standard input is closed then. Raises UserError with what
    it printed where it doesn't start.
    """
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "klong_rl.dashboard", f"run={run_dir}", "beside=true")
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield await _where(process)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), END_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _where(process: asyncio.subprocess.Process) -> str:
    try:
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise UserError(f"dashboard=true: it said nothing for {START_S:g} s; launch without it") from None
    if line:
        return line.decode().strip()
    _, told = await process.communicate()
    last = (told.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
    raise UserError(f"dashboard=true: {last.removeprefix('error: ')}")
