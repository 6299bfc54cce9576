"""`python -m klong_rl.dashboard run=DIR [port=8420] [host=127.0.0.1]`: serve the page of a run until Ctrl-C.

On an address that others reach, a token is asked for: that of the environment variable KLONG_DASHBOARD_TOKEN, or one
that is made and printed. Nothing of the run is changed, and nothing in DIR is written.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from klong_rl.cli import run_main
from klong_rl.dashboard.access import TOKEN_ENV, is_loopback
from klong_rl.dashboard.server import STATIC, Dashboard
from klong_rl.errors import UserError
from klong_rl.interrupt import EXIT_CODES, Interrupts

PORT = 8420
LEAST_TOKEN_CHARS = 16
USAGE = "use run=DIR, the directory of a run, for example run=runs/nano-seed0, with port=8420 and host=127.0.0.1"


class Arguments(NamedTuple):
    """`beside`: a launch started it, takes another port where its own is taken, and ends it by closing its input."""

    run_dir: Path
    host: str
    port: int
    beside: bool = False


def main(arguments: Sequence[str]) -> int:
    """Serve it; the exit code."""
    given = parse(arguments)
    if not (STATIC / "app.js").exists():
        raise UserError(f"{STATIC} holds no built page: run `make dashboard`, which needs npm")
    try:
        return asyncio.run(_serve(given, token_for(given.host, os.environ.get(TOKEN_ENV, ""))))
    except KeyboardInterrupt:
        return 0


def parse(arguments: Sequence[str]) -> Arguments:
    """What to serve, and where. Raises UserError."""
    given = {"host": "127.0.0.1", "port": str(PORT)}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in ("run", "host", "port", "beside") or not value:
            raise UserError(f"{argument} is not understood; {USAGE}")
        given[key] = value
    if "run" not in given:
        raise UserError(f"no run is named; {USAGE}")
    run_dir = Path(given["run"]).resolve()
    if not run_dir.is_dir():
        raise UserError(f"run={run_dir} doesn't exist; {USAGE}")
    if not given["port"].isdecimal() or int(given["port"]) > 65535:
        raise UserError(f"port={given['port']} is not a port; use a number up to 65535, 0 for any that is free")
    return Arguments(run_dir, given["host"], int(given["port"]), "beside" in given)


def token_for(host: str, set_by_user: str) -> str:
    """What a reader must show: the user's, or on an address that others reach a new one. "" for nothing."""
    if set_by_user and len(set_by_user) < LEAST_TOKEN_CHARS:
        raise UserError(f"{TOKEN_ENV}: a token of {len(set_by_user)} characters is too short; use {LEAST_TOKEN_CHARS}")
    return set_by_user or ("" if is_loopback(host) else secrets.token_urlsafe(24))


async def _serve(given: Arguments, token: str) -> int:
    interrupts = Interrupts()
    interrupts.arm()
    runner = web.AppRunner(Dashboard(given.run_dir, token).application(), access_log=None)
    await runner.setup()
    try:
        await _listen(runner, given)
        host, port = runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"dashboard: http://{shown}:{port}/" + (f"?token={token}" if token else ""), flush=True)
        await (_input_closed() if given.beside else asyncio.Event().wait())
    except asyncio.CancelledError:
        if not interrupts.came:
            raise
        return EXIT_CODES[interrupts.came[0]]
    finally:
        await runner.cleanup()
    return 0


async def _listen(runner: web.AppRunner, given: Arguments) -> None:
    try:
        await web.TCPSite(runner, given.host, given.port).start()
    except OSError as error:
        if not (given.beside and error.errno == errno.EADDRINUSE):
            raise UserError(f"host={given.host} port={given.port}: {error.strerror}; choose another port=") from error
        await web.TCPSite(runner, given.host, 0).start()


async def _input_closed() -> None:
    """Until whoever started this is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    run_main(main)
