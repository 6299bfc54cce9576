"""The buffer's connection: servers that don't answer, refuse, evict or are full; and the keys of a cluster."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, Full, Unavailable
from klong_rl.types import Outcome, Verdict
from tests.episodes import judged, segment, spec, window

pytestmark = pytest.mark.integration


@contextmanager
def redis_server(folder: Path, *settings: str) -> Iterator[str]:
    """The URL of a bare redis-server with these settings."""
    path = folder / "bare.sock"
    command = ["redis-server", "--unixsocket", str(path), "--dir", str(folder), "--save", "", *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < deadline and process.poll() is None, "the bare redis-server didn't listen"
            time.sleep(0.02)
        yield f"unix://{path}"
    finally:
        process.kill()
        process.wait()


async def test_no_answer_is_an_error_that_says_so(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"connect: waited 0.5 s for Redis at unix://.*nothing.sock \(last error"):
        await Buffer.connect(BufferAddress(f"unix://{tmp_path}/nothing.sock", "run", deadline_s=0.5))
    assert time.monotonic() - started < 2


async def test_a_server_that_hangs_is_left_at_the_deadline(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run", deadline_s=0.5)) as buffer:
            os.kill(server.pid, signal.SIGSTOP)
            try:
                with pytest.raises(Unavailable, match="admit: waited 0.5 s"):
                    await buffer.admit(spec("g"))
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await buffer.admit(spec("g"))
            assert (await buffer.counts()).states == {"queued": 1}


async def test_a_wrong_password_is_not_retried_and_not_shown(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with redis_server(tmp_path, "--port", str(port), "--requirepass", "right"):
        started = time.monotonic()
        with pytest.raises(Unavailable, match="refuses the log-in") as found:
            await Buffer.connect(BufferAddress(f"redis://:wrong@127.0.0.1:{port}", "run"))
        assert time.monotonic() - started < 5 and "wrong" not in str(found.value).replace("WRONGPASS", "")
        async with await Buffer.connect(BufferAddress(f"redis://:right@127.0.0.1:{port}", "run")) as buffer:
            assert await buffer.policy_version() == 0


async def test_a_redis_that_evicts_is_refused(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--port", "0", "--maxmemory-policy", "allkeys-lru") as url:
        with pytest.raises(Unavailable, match="allkeys-lru.*set it to noeviction"):
            await Buffer.connect(BufferAddress(url, "run"))


async def test_at_the_memory_limit_new_episodes_wait_and_the_others_free_memory(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, maxmemory_mb=8) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run")) as buffer:
            await buffer.admit(spec("a", 0))
            await buffer.admit(spec("b", 0))
            await buffer.claim("actor")
            seqs = itertools.count()
            used, limit = await buffer.memory()
            while used <= limit:
                await buffer.append("a-0", 1, segment("a-0", next(seqs), observation_tokens=20_000))
                used, limit = await buffer.memory()
                assert limit == 8 << 20
            with pytest.raises(Full, match="claim: .* is at its memory limit; wait for training"):
                await buffer.claim("actor")
            with pytest.raises(Full):
                await buffer.admit(spec("c"))

            await buffer.append("a-0", 1, segment("a-0", next(seqs)))
            await buffer.seal("a-0", 1, Outcome(kind="submitted"))
            assert (await buffer.next_to_judge("judge")).spec.id == "a-0"
            await buffer.verdict("a-0", 1, Verdict(score=1.0))
            assert len((await buffer.group("a"))[0].segments) == next(seqs)
            await buffer.close_group("a", [window("a", 0)])
            await buffer.lease(0, 1, oldest_version=0)
            await buffer.publish_version()
            await buffer.rollback(-1)
            await buffer.lease(0, 1, oldest_version=0)
            await buffer.commit(0)
            await buffer.forget("a")
            assert (await buffer.claim("actor")).spec.id == "b-0"


async def test_all_keys_of_a_run_lie_in_one_slot_of_a_cluster(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = ("--cluster-enabled", "yes", "--port", str(port), "--cluster-port", str(port % 50_000 + 10_000))
    with redis_server(tmp_path, *cluster) as url:
        client = redis.Redis(unix_socket_path=url.removeprefix("unix://"), decode_responses=True)
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # the client waits until the cluster is up
        async with await Buffer.connect(BufferAddress(url, "run")) as buffer:
            for name in "ab":
                await judged(buffer, spec(name))
                await buffer.close_group(name, [window(name, 0), window(name, 1)])
            await buffer.lease(0, 1, oldest_version=0)
            assert len(await buffer.windows(["a/w0", "b/w1"])) == 2
            await buffer.commit(0)
            await buffer.forget("a")
        keys = list(client.scan_iter())
        assert keys and {client.execute_command("CLUSTER", "KEYSLOT", key) for key in keys} == {
            client.execute_command("CLUSTER", "KEYSLOT", "klong:{run}:version")
        }
