"""What happens to a host in the middle of a command: the right type of failure within its deadline, and a way on."""

import asyncio
import contextlib
import time
import uuid
from pathlib import Path

import docker
import pytest

from klong_rl.types import Limits
from sandboxes import docker_sandbox, shell
from sandboxes.base import InfrastructureFailure
from sandboxes.docker import DockerSandboxes

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)
COMMAND_S = 1.0
GRACE_S = 1.0
HOST_S = 4.0  # for a host that doesn't answer
SPARE_S = 8.0  # what this machine may take beside all deadlines


@pytest.fixture
def api():
    made = docker.APIClient(version="auto")
    yield made
    made.close()


@pytest.fixture
async def factory(monkeypatch):
    monkeypatch.setattr(shell, "GRACE_S", GRACE_S)
    monkeypatch.setattr(docker_sandbox, "RESTART_S", HOST_S)
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}")
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture
async def sandbox(factory):
    """With a snapshot before its last file."""
    made = await factory.create("e", 1, IMAGE, LIMITS)
    await made.exec("mkdir here && cd here && export A=kept && echo first > file", timeout_s=10)
    made.kept = await made.snapshot("last")
    await made.exec("echo second > file", timeout_s=10)
    return made


@contextlib.asynccontextmanager
async def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SPARE_S


async def begun(sandbox, command="sleep 60", timeout_s=60.0):
    """A command that runs by now."""
    running = asyncio.create_task(sandbox.exec(f"echo begun > /work/begun; {command}", timeout_s=timeout_s))
    await asyncio.sleep(0.7)
    return running


async def check_restored(factory, image):
    restored = await factory.create("e", 2, image, LIMITS)
    seen = await restored.exec('pwd; echo "$A"; cat file', timeout_s=10)
    assert seen.output == "/work/here\nkept\nfirst\n"


async def test_a_container_that_is_removed_is_gone_and_its_snapshot_is_not(factory, sandbox, api):
    running = await begun(sandbox)
    async with within(0):
        api.remove_container(sandbox.name, force=True)
        with pytest.raises(InfrastructureFailure, match=f"{sandbox.name}.* gone"):
            await running
    await check_restored(factory, sandbox.kept)


async def test_a_container_that_runs_out_of_memory_as_a_whole_is_started_again_with_its_files(factory, sandbox, api):
    """Docker's init is made the first to go, which no agent may do."""
    before = api.inspect_container(sandbox.name)["State"]
    Path(f"/proc/{before['Pid']}/oom_score_adj").write_text("1000")
    # Several, so that none of them is as large as Docker's init seems to be.
    command = "echo third > file; for i in 1 2 3 4; do head -c 1G /dev/zero | tail -c 1G & done; wait; sleep 60"
    result = await sandbox.exec(command, timeout_s=30)
    assert result.interrupted and result.exit_code is None and not result.timed_out, result
    assert api.inspect_container(sandbox.name)["State"]["Pid"] != before["Pid"]
    assert (await sandbox.exec('pwd; echo "$A"; cat file', timeout_s=10)).output == "/work/here\nkept\nthird\n"


async def test_a_container_that_stays_paused_is_started_again_when_the_commands_time_is_up(sandbox, api):
    running = await begun(sandbox, timeout_s=COMMAND_S)
    api.pause(sandbox.name)
    async with within(COMMAND_S + GRACE_S + HOST_S):
        result = await running
    assert result.timed_out and result.exit_code is None
    assert not api.inspect_container(sandbox.name)["State"]["Paused"]
    assert (await sandbox.exec('pwd; echo "$A"; cat file', timeout_s=10)).output == "/work/here\nkept\nsecond\n"


async def test_a_host_that_falls_silent_fails_within_its_deadlines_and_is_there_again_after_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shell, "GRACE_S", GRACE_S)
    monkeypatch.setattr(docker_sandbox, "RESTART_S", HOST_S)
    async with frozen_at_will(str(tmp_path / "docker.sock")) as (url, open_gate):
        factory = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", hosts=[url])
        sandbox = await factory.create("e", 1, IMAGE, LIMITS)
        await sandbox.exec("cd /tmp; export A=kept", timeout_s=10)
        running = await begun(sandbox, timeout_s=COMMAND_S)
        open_gate.clear()
        async with within(COMMAND_S + GRACE_S + HOST_S):
            with pytest.raises(InfrastructureFailure, match=f"restarting {sandbox.name}"):
                await running
        open_gate.set()
        assert (await sandbox.exec('pwd; echo "$A"; cat /work/begun', timeout_s=10)).output == "/tmp\nkept\nbegun\n"
        await factory.reap(keep=set())
        await factory.close()


@contextlib.asynccontextmanager
async def frozen_at_will(path, daemon="/var/run/docker.sock"):
    """A way to the daemon: its URL, and the event without which no byte passes, either way."""
    gate, copies = asyncio.Event(), set()
    gate.set()

    async def copy(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader, writer):
        there, back = await asyncio.open_unix_connection(daemon)
        for ends in ((reader, back), (there, writer)):
            copies.add(asyncio.create_task(copy(*ends)))

    server = await asyncio.start_unix_server(join, path)
    try:
        yield f"unix://{path}", gate
    finally:
        server.close()
        for each in copies:
            each.cancel()
