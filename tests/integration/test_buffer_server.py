"""The embedded redis-server: it starts, dies with its driver, keeps its data, and says clearly why it can't."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from klong_rl.buffer import (
    BinaryMissing,
    Buffer,
    BufferAddress,
    DiskFull,
    EmbeddedRedis,
    Full,
    RunDirBusy,
    ServerFault,
    SocketTaken,
)
from klong_rl.buffer.server import REVIVALS_WITHOUT_AN_ANSWER
from klong_rl.types import EpisodeSpec, Task

pytestmark = pytest.mark.integration

DEADLINE_S = 20.0


def spec(name: str) -> EpisodeSpec:
    task = Task(id="relay/train/0", family="relay", instruction="Follow the clues.", image="none")
    return EpisodeSpec(
        id=name, group=name, group_size=1, stage=1, purpose="train", task=task, timeout_s=20.0, max_turns=8
    )


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def driver_that_starts_a_server(run_dir: Path) -> tuple[subprocess.Popen, int]:
    """Another process with a server on `run_dir`, and that server's pid."""
    program = (
        "import sys, time; from pathlib import Path; from klong_rl.buffer import EmbeddedRedis\n"
        "server = EmbeddedRedis(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen([sys.executable, "-c", program, str(run_dir)], stdout=subprocess.PIPE, text=True)
    return driver, int(driver.stdout.readline())


def test_takes_commands_and_ends_cleanly(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        pid = server.pid
        client = redis.Redis(unix_socket_path=server.url.removeprefix("unix://"), decode_responses=True)
        settings = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "save", "port")
        client.close()
    assert settings == {
        "appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": "", "port": "0",
    }  # fmt: skip
    assert not Path(f"/proc/{pid}").exists()
    assert "Redis is now ready to exit" in server.log.read_text()


async def test_what_was_written_survives_kill_9_of_redis_under_a_waiting_client(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run", deadline_s=DEADLINE_S)) as buffer:
            for i in range(50):
                await buffer.admit(spec(f"e{i}"))
            claim = await buffer.claim("actor")
            os.kill(server.pid, signal.SIGKILL)
            wait_for_end(server.pid)
            waiting = asyncio.create_task(buffer.claim("actor"))  # meets no server, goes on trying
            await asyncio.sleep(0.2)
            assert not waiting.done()
            server.start()
            assert (await waiting).spec.id == "e1"
            assert claim.spec.id == "e0" and (await buffer.episode("e0")).state == "running"
            assert (await buffer.counts()).states == {"queued": 48, "running": 2}


async def test_a_server_that_is_killed_is_revived_under_a_waiting_client(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run", deadline_s=DEADLINE_S)) as buffer:
            assert not server.revive()  # there is nothing to do
            for life in range(REVIVALS_WITHOUT_AN_ANSWER + 2):  # it answers between, so it may die as often as it likes
                await buffer.admit(spec(f"e{life}"))
                os.kill(server.pid, signal.SIGKILL)
                wait_for_end(server.pid)
                waiting = asyncio.create_task(buffer.admit(spec(f"waiting-{life}")))
                await asyncio.sleep(0.1)
                began = time.monotonic()
                assert server.revive() and time.monotonic() - began < 0.5
                assert await waiting
                assert not server.revive()  # sees that it answers
            assert (await buffer.counts()).states == {"queued": 2 * (REVIVALS_WITHOUT_AN_ANSWER + 2)}
    assert "Redis is now ready to exit" in server.log.read_text()
    assert not server.revive()  # it was stopped: nothing to revive


def test_a_server_that_ends_again_and_again_is_a_fault_with_its_own_words(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        redis.Redis(unix_socket_path=server.url.removeprefix("unix://")).set("a", "b")
        os.kill(server.pid, signal.SIGKILL)
        wait_for_end(server.pid)
        for part in (tmp_path / "redis" / "appendonlydir").glob("*.aof"):
            part.write_bytes(b"not redis\r\n" * 10)
        deadline = time.monotonic() + DEADLINE_S
        with pytest.raises(ServerFault, match="(?s)ended .1. after each of 3 starts.*[Bb]ad file format"):
            while time.monotonic() < deadline:
                server.revive()
                time.sleep(0.02)


async def test_every_transition_is_durable_if_asked(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, fsync="always") as server:
        client = redis.Redis(unix_socket_path=server.url.removeprefix("unix://"), decode_responses=True)
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


async def test_data_survives_a_stop_and_a_start(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            version = await buffer.publish_version()
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            assert await buffer.publish_version() == version + 1


def test_dies_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    driver, server_pid = driver_that_starts_a_server(tmp_path)
    driver.kill()
    driver.wait()
    wait_for_end(server_pid)
    assert "Redis is now ready to exit" in (tmp_path / "redis" / "redis.log").read_text()


def test_one_live_driver_a_run_directory(tmp_path: Path) -> None:
    driver, _ = driver_that_starts_a_server(tmp_path)
    try:
        with pytest.raises(RunDirBusy, match="another live driver"):
            EmbeddedRedis(tmp_path).start()
    finally:
        driver.kill()
        driver.wait()


def test_a_server_left_over_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    path = folder / "redis.sock"
    where = ["--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
    leftover = subprocess.Popen(
        ["redis-server", *where, "--save", "", "--appendonly", "yes"], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not path.exists():
            assert time.monotonic() < deadline, "the leftover server didn't listen"
            time.sleep(0.02)
        old = redis.Redis(unix_socket_path=str(path))
        old.set("kept", "yes")
        threading.Thread(target=leftover.wait, daemon=True).start()  # reaps it, as init would
        with EmbeddedRedis(tmp_path) as server:
            assert server.pid != leftover.pid
            assert redis.Redis(unix_socket_path=str(path)).get("kept") == b"yes"
        assert leftover.returncode == 0
    finally:
        leftover.kill()


def test_a_run_directory_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    with EmbeddedRedis(deep) as server:
        first = server.url
        assert len(first.removeprefix("unix://")) < 108
        assert redis.Redis(unix_socket_path=first.removeprefix("unix://")).ping()
    with EmbeddedRedis(deep) as server:
        assert server.url == first  # a client that outlived the driver finds the new server


async def test_a_run_directory_with_an_odd_name(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "run 1 #2?=%41") as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            assert await buffer.publish_version() == 1


def test_another_servers_socket_is_not_taken(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with EmbeddedRedis(elsewhere) as other:
        (tmp_path / "redis").mkdir()
        (tmp_path / "redis" / "redis.sock").symlink_to(other.url.removeprefix("unix://"))
        with pytest.raises(SocketTaken, match="belongs to the redis-server of .*elsewhere"):
            EmbeddedRedis(tmp_path).start()
        assert redis.Redis(unix_socket_path=other.url.removeprefix("unix://")).ping()


def test_a_socket_of_another_program_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "redis" / "redis.sock"))
        other.listen()
        hang_up = threading.Thread(target=lambda: other.accept()[0].close(), daemon=True)
        hang_up.start()
        with pytest.raises(SocketTaken, match="isn't Redis"):
            EmbeddedRedis(tmp_path).start()


def test_a_file_where_the_socket_belongs_is_not_deleted(tmp_path: Path) -> None:
    file = tmp_path / "redis" / "redis.sock"
    file.parent.mkdir()
    file.write_text("mine")
    with pytest.raises(SocketTaken, match="is a file"):
        EmbeddedRedis(tmp_path).start()
    assert file.read_text() == "mine"


def test_a_socket_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    os.kill(server.pid, signal.SIGKILL)
    wait_for_end(server.pid)
    server.stop()
    assert (tmp_path / "redis" / "redis.sock").exists()
    with EmbeddedRedis(tmp_path) as again:
        assert redis.Redis(unix_socket_path=again.url.removeprefix("unix://")).ping()


def test_no_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match="apt install redis-server"):
        EmbeddedRedis(tmp_path / "run").start()


def test_a_broken_file_is_reported_with_the_servers_own_words(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        redis.Redis(unix_socket_path=server.url.removeprefix("unix://")).set("a", "b")
    for part in (tmp_path / "redis" / "appendonlydir").glob("*.aof"):
        part.write_bytes(b"not redis\r\n" * 10)
    with pytest.raises(ServerFault, match="(?s)ended with 1.*[Bb]ad file format"):
        EmbeddedRedis(tmp_path).start()
    with pytest.raises(ServerFault, match="(?s)ended with 1"):
        EmbeddedRedis(tmp_path).start()  # and the lock was given back


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 MB; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_too_small_is_refused_at_the_start(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(100 << 20))
    with pytest.raises(DiskFull, match="has 200 MB free"):
        EmbeddedRedis(small_disk).start()


async def test_a_disk_that_fills_up_stops_writes_and_loses_none(small_disk: Path) -> None:
    with EmbeddedRedis(small_disk) as server:
        address = BufferAddress(server.url, "run", deadline_s=DEADLINE_S)
        async with await Buffer.connect(address) as buffer:
            assert await buffer.admit(spec("before"))
            filler = small_disk / "other"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
            admitted = ["before"]
            with pytest.raises(Full, match="free space on its disk"):
                for i in range(100_000):
                    await buffer.admit(spec(f"e{i}"))
                    admitted.append(f"e{i}")
                    await asyncio.sleep(0.01)
            filler.unlink()
            await _until_admitted(buffer, "after")
            admitted.append("after")
    with EmbeddedRedis(small_disk) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            for name in admitted:
                assert (await buffer.episode(name)).state == "queued"


async def _until_admitted(buffer: Buffer, name: str) -> None:
    """Redis takes writes again within a second or two of finding room."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            await buffer.admit(spec(name))
            return
        except Full:
            assert time.monotonic() < deadline, "Redis takes no writes though its disk has room"
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("call", [EmbeddedRedis.start, EmbeddedRedis.revive])
def test_not_from_a_thread(tmp_path: Path, call: Callable[[EmbeddedRedis], object]) -> None:
    found: list[Exception] = []

    def try_it() -> None:
        try:
            call(EmbeddedRedis(tmp_path))
        except ServerFault as error:
            found.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert "in a thread" in str(found[0])
