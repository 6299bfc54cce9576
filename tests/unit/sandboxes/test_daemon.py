"""Waiting for a daemon: a server on a socket of the test's own that comes, goes and hangs."""

import asyncio
import time

import pytest

from sandboxes.base import HostAway, InfrastructureFailure
from sandboxes.daemon import Daemon, Refused

VERSION = b'{"ApiVersion": "1.41"}'


class Server:
    """Answers any request with the next of `answers`; None hangs up, "hang" says nothing."""

    def __init__(self, path, *answers):
        self._path, self._answers = path, list(answers)

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self._path.unlink()

    async def _serve(self, reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            answer = self._answers.pop(0) if self._answers else (200, VERSION)
            if answer == "hang":
                await asyncio.sleep(5)
            if answer is None or answer == "hang":
                break
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (answer[0], len(answer[1]), answer[1]))
        writer.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "docker.sock"


@pytest.fixture
def daemon(path):
    made = Daemon(f"unix://{path}", threads=2)
    yield made
    made.close()


async def test_a_daemon_that_is_not_there_is_waited_for_until_the_deadline(daemon, path):
    started = time.monotonic()
    with pytest.raises(HostAway, match=rf"{path}.*\(asking\).*systemctl start docker.*Waited 1 s"):
        await daemon.call("asking", lambda api: api.version(), deadline_s=1)
    assert 0.9 < time.monotonic() - started < 2


async def test_once_does_not_wait(daemon):
    async with asyncio.timeout(1):
        with pytest.raises(HostAway, match="asking"):
            await daemon.once("asking", lambda api: api.version(), deadline_s=60)


async def test_a_daemon_that_comes_back_is_asked_again(daemon, path):
    calls = []

    def ask(api):
        calls.append(1)
        return api.version(api_version=False)

    asked = asyncio.create_task(daemon.call("asking", ask, deadline_s=10))
    await asyncio.sleep(0.5)
    async with Server(path, (200, VERSION), None):  # gone again in the middle of the call
        assert (await asked)["ApiVersion"] == "1.41"
    assert len(calls) == 2


async def test_a_refusal_is_no_reason_to_wait(daemon, path):
    async with Server(path, (200, VERSION), (500, b'{"message": "no room"}')):
        with pytest.raises(Refused, match="refused asking: no room"):
            await daemon.call("asking", lambda api: api.version(), deadline_s=60)


async def test_a_daemon_that_hangs_holds_neither_the_call_nor_the_thread_past_the_deadline(daemon, path):
    async with Server(path, (200, VERSION), "hang", "hang"):
        for _ in range(2):
            with pytest.raises(InfrastructureFailure, match="did not finish asking within 0.5 s"):
                await daemon.call("asking", lambda api: api.version(), deadline_s=0.5)
        await asyncio.sleep(0.3)
        assert await daemon.call("asking", lambda api: api.version(), deadline_s=2)
