"""The Docker daemon is killed and started again under its sandboxes: a daemon of the test's own, so really killed."""

import asyncio
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from klong_rl.types import Limits, Network
from sandboxes import docker_sandbox
from sandboxes.base import HostAway
from sandboxes.docker import DockerSandboxes
from tests.private_dockerd import PrivateDockerd

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=128, pids=32)
LIMITS_WITH_NETWORK = Limits(memory_mb=128, pids=32, network=Network(allow=("*.invalid",)))
AWAY_S = 0.3


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def dockerd(request):
    """A daemon that kills its containers when it starts again, and one with live-restore, which doesn't."""
    with tempfile.TemporaryDirectory(prefix="klong-") as short:
        made = PrivateDockerd(Path(short) / "dockerd", live_restore=request.param)
        made.start()
        try:
            made.load_image(IMAGE)
            yield made
        finally:
            made.stop()


@pytest.fixture
async def factory(dockerd):
    made = DockerSandboxes("test", hosts=[dockerd.host])
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture
async def sandbox(factory):
    made = await factory.create("e", 1, IMAGE, LIMITS)
    await made.exec("mkdir here && cd here && export A=kept && echo text > file; sleep 4500 & true", timeout_s=10)
    return made


@asynccontextmanager
async def daemon_away(dockerd, away_s=AWAY_S):
    """Kill the daemon, and have it start again after `away_s`, while the body runs."""
    dockerd.kill()

    async def come_back():
        await asyncio.sleep(away_s)
        await asyncio.to_thread(dockerd.start)

    coming = asyncio.create_task(come_back())
    try:
        yield
    finally:
        await coming


async def test_a_command_that_ran_is_interrupted_and_not_run_again(dockerd, factory, sandbox):
    running = asyncio.create_task(sandbox.exec("echo once >> ran; sleep 20; echo end >> ran", timeout_s=60))
    await asyncio.sleep(0.5)
    async with daemon_away(dockerd):
        result = await running
    assert result.interrupted and result.exit_code is None and not result.timed_out
    seen = await sandbox.exec('basename "$PWD"; echo $A; cat file ran; pgrep -c -f "^sleep 20"', timeout_s=10)
    assert seen.output == "here\nkept\ntext\nonce\n0\n"
    assert not seen.interrupted


async def test_a_command_that_ends_while_the_daemon_is_away_is_interrupted_too(dockerd, sandbox):
    running = asyncio.create_task(sandbox.exec("sleep 1; echo once >> ran", timeout_s=60))
    await asyncio.sleep(0.5)
    async with daemon_away(dockerd, away_s=1.5):
        assert (await running).interrupted
    assert (await sandbox.exec("cat ran", timeout_s=10)).output == "once\n"


async def test_an_idle_sandbox_goes_on_as_if_nothing_had_happened(dockerd, sandbox):
    async with daemon_away(dockerd):
        result = await sandbox.exec('basename "$PWD"; echo $A; cat file; pgrep -c -f "^sleep 4500"', timeout_s=10)
    background = "1\n" if dockerd.live_restore else "0\n"
    assert result.output == "here\nkept\ntext\n" + background
    assert not result.interrupted


async def test_files_move_and_snapshots_are_kept_across_a_restart(dockerd, factory, sandbox):
    async with daemon_away(dockerd):
        assert await sandbox.read("here/file") == b"text\n"
    async with daemon_away(dockerd):
        await sandbox.write("new", b"1")
    async with daemon_away(dockerd):
        image = await sandbox.snapshot("test")
    async with daemon_away(dockerd):
        other = await factory.create("other", 1, image, LIMITS)
    assert (await other.exec("cat file ../new", timeout_s=10)).output == "text\n1"


@pytest.mark.slow
async def test_a_network_is_there_again_after_a_restart(dockerd, factory):
    dockerd.load_image("klong-net")
    sandbox = await factory.create("e", 1, IMAGE, LIMITS_WITH_NETWORK)
    assert await ask(sandbox, "blocked.test") == "blocked.test:80 is not allowed\n"
    async with daemon_away(dockerd):
        pass
    assert await ask(sandbox, "blocked.test") == "blocked.test:80 is not allowed\n"
    assert await ask(sandbox, "nowhere.invalid") == "Name or service not known\n", "which only the way out can say"
    async with daemon_away(dockerd):
        adopted = await factory.adopt("e")
    assert await ask(adopted, "blocked.test") == "blocked.test:80 is not allowed\n"
    async with daemon_away(dockerd):
        await adopted.close()
    await factory.reap(keep=set())
    assert dockerd.containers() == []


async def ask(sandbox, host):
    """What a sandbox's proxy says of a host."""
    request = f"printf 'GET http://{host}/ HTTP/1.1\\r\\n\\r\\n'"
    command = f"exec 3<>/dev/tcp/127.0.0.1/3128; {request} >&3; tail -n 1 <&3"
    return (await sandbox.exec(command, timeout_s=30)).output


async def test_another_owner_adopts_and_closes_across_a_restart(dockerd, factory, sandbox):
    async with daemon_away(dockerd):
        adopted = await factory.adopt("e")
    assert (await adopted.exec("echo $A; cat file", timeout_s=10)).output == "kept\ntext\n"
    async with daemon_away(dockerd):
        await adopted.close()
    assert await factory.adopt("e") is None


async def test_the_agent_that_kills_its_shell_is_not_interrupted(dockerd, sandbox):
    result = await sandbox.exec("kill -9 $$; sleep 60", timeout_s=30)
    assert result.exit_code is None and not result.interrupted


async def test_closing_while_the_daemon_is_away_for_good_ends_at_its_deadline(dockerd, sandbox, monkeypatch):
    monkeypatch.setattr(docker_sandbox, "CLOSE_S", 2.0)
    dockerd.kill()
    try:
        started = time.monotonic()
        with pytest.raises(HostAway, match="removing .*Waited 2 s"):
            await sandbox.close()
        assert time.monotonic() - started < 4
    finally:
        dockerd.start()
