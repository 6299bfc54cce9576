"""Four ways to run a command in one container, each as an async function that runs `true` and checks that it did.

    ours      the shell that a sandbox keeps open
    api       `docker exec` through the API: exec_create, exec_start, exec_inspect for the exit code
    cli       the `docker exec` command
    swe-rex   SWE-ReX's own client, and its server with a bash session inside the container

The container has the host's network, since SWE-ReX is reached over HTTP; no other way here uses a network.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import docker

from sandboxes.docker_sandbox import DockerSandbox

Act = Callable[[], Awaitable[None]]

TIMEOUT_S = 60.0
SERVER_START_S = 60.0
USER = "agent"


@asynccontextmanager
async def contenders(sandbox: DockerSandbox) -> AsyncIterator[dict[str, Act]]:
    """All four, in the container of `sandbox`."""
    api = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())

    async def ours() -> None:
        assert (await sandbox.exec("true", timeout_s=TIMEOUT_S)).exit_code == 0

    async def through_api() -> None:
        made = api.exec_create(sandbox.name, ["sh", "-c", "true"], user=USER)["Id"]
        api.exec_start(made)
        assert api.exec_inspect(made)["ExitCode"] == 0

    async def cli() -> None:
        command = ("docker", "exec", "--user", USER, sandbox.name, "sh", "-c", "true")
        assert await (await asyncio.create_subprocess_exec(*command)).wait() == 0

    try:
        async with _swe_rex(api, sandbox.name) as swe_rex:
            yield {"ours": ours, "api": through_api, "cli": cli, "swe-rex": swe_rex}
    finally:
        api.close()


@asynccontextmanager
async def _swe_rex(api: docker.APIClient, name: str) -> AsyncIterator[Act]:
    """A server in the container, a session in it, and a client here, as SWE-ReX's DockerDeployment connects them."""
    os.environ.setdefault("SWE_REX_LOG_STREAM_LEVEL", "ERROR")
    from swerex.runtime.abstract import BashAction, CreateBashSessionRequest
    from swerex.runtime.remote import RemoteRuntime

    logging.getLogger("rex-runtime").setLevel(logging.CRITICAL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port, token = probe.getsockname()[1], secrets.token_hex(8)
    server = ["python3", "-m", "swerex", "--host", "127.0.0.1", "--port", str(port), "--auth-token", token]
    api.exec_start(api.exec_create(name, server, user=USER)["Id"], detach=True)
    runtime = RemoteRuntime(host="http://127.0.0.1", port=port, auth_token=token, timeout=TIMEOUT_S)
    await runtime.wait_until_alive(timeout=SERVER_START_S)
    await runtime.create_session(CreateBashSessionRequest(startup_timeout=10))

    async def act() -> None:
        assert (await runtime.run_in_session(BashAction(command="true", timeout=TIMEOUT_S))).exit_code == 0

    yield act
    await runtime.close()


async def cold_start(image: str, name: str) -> None:
    """`docker run` as most people type it, until the command returns: the container runs then, and has no shell."""
    command = ("docker", "run", "--detach", "--network", "none", "--name", name, image, "sleep", "86400")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
