"""Redis servers of a test's own, on free ports: alone, watched by Sentinels, in a Cluster; and a bad network."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

DEADLINE_S = 20.0


def free_ports(n: int) -> list[int]:
    """Each also free 10,000 below or above, where a node of a Cluster talks to the others: `bus_port`."""
    with ExitStack() as stack:
        ports = []
        while len(ports) < n:
            probe, bus = (stack.enter_context(socket.socket()) for _ in range(2))
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            try:
                bus.bind(("127.0.0.1", bus_port(port)))
            except OSError:
                continue
            ports.append(port)
        return ports


def bus_port(port: int) -> int:
    return port + 10_000 if port < 50_000 else port - 10_000


def wait_until(what: str, done: Any) -> None:
    """Until `done()` is true; an error of the connection counts as not yet."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if done():
                return
        except redis.exceptions.RedisError:
            pass
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.02)


@dataclass
class Server:
    """A redis-server that runs in `folder` on 127.0.0.1:`port`."""

    folder: Path
    port: int
    process: subprocess.Popen
    connect: dict[str, Any]  # how this module asks it

    def ask(self, *command: str | int) -> Any:
        with redis.Redis("127.0.0.1", self.port, decode_responses=True, **self.connect) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def server(folder: Path, *settings: str | int, port: int = 0, **connect: Any) -> Iterator[Server]:
    """One that keeps an append-only file, once it answers. `settings` come last: they win."""
    port = port or free_ports(1)[0]
    folder = folder / str(port)
    folder.mkdir(parents=True, exist_ok=True)
    plain = () if connect.get("ssl") else ("--port", port)
    basic = ("--bind", "127.0.0.1", *plain, "--dir", folder, "--save", "", "--appendonly", "yes")
    basic += ("--repl-diskless-sync-delay", 0)  # a replica starts at once
    with _running(folder, ["redis-server", *basic, *settings]) as process:
        it = Server(folder, port, process, connect)
        wait_until(f"the redis-server on port {port}", lambda: process.poll() is None and it.ask("PING"))
        yield it


@contextmanager
def pair(folder: Path) -> Iterator[tuple[Server, Server]]:
    """A master, and a replica that has all it has."""
    with server(folder) as master, server(folder, "--replicaof", "127.0.0.1", master.port) as replica:
        wait_until("the replica", lambda: _in_sync(replica))
        yield master, replica


@contextmanager
def _running(folder: Path, command: list[Any]) -> Iterator[subprocess.Popen]:
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def sentinels(folder: Path, master: Server, *settings: str, n: int = 3) -> Iterator[list[int]]:
    """Ports of Sentinels that watch `master` as "klong" and agree about it; a silence of 500 ms is a death to them."""
    with ExitStack() as stack:
        clients = []
        for port in free_ports(n):
            place = folder / f"sentinel-{port}"
            place.mkdir()
            lines = [f"port {port}", "bind 127.0.0.1", f"dir {place}", *settings]
            lines += [f"sentinel monitor klong 127.0.0.1 {master.port} 2"]
            lines += ["sentinel down-after-milliseconds klong 500", "sentinel failover-timeout klong 2000"]
            (place / "sentinel.conf").write_text("\n".join(lines) + "\n")
            stack.enter_context(_running(place, ["redis-server", place / "sentinel.conf", "--sentinel"]))
            clients.append(stack.enter_context(redis.Redis(port=port)))

        def agree() -> bool:
            seen = [client.sentinel_master("klong") for client in clients]
            return all(s["num-other-sentinels"] == n - 1 and s["num-slaves"] == 1 for s in seen)

        wait_until("the Sentinels to know each other and the replica", agree)
        yield [client.get_connection_kwargs()["port"] for client in clients]


@contextmanager
def cluster(folder: Path, masters: int = 3, replicas: int = 0, *settings: str) -> Iterator[list[Server]]:
    """A Redis Cluster: the masters first, each with its share of the slots, then a replica for each of the first."""
    with ExitStack() as stack:
        nodes = []
        for port in free_ports(masters + replicas):
            mode = ("--cluster-enabled", "yes", "--cluster-port", bus_port(port), "--cluster-node-timeout", 1000)
            nodes.append(stack.enter_context(server(folder, *mode, *settings, port=port)))
        share = -(-16384 // masters)
        for i, node in enumerate(nodes[:masters]):
            node.ask("CLUSTER", "ADDSLOTSRANGE", i * share, min(16384, (i + 1) * share) - 1)
        for i, node in enumerate(nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for node in nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus_port(nodes[0].port))
        wait_until("the nodes to meet", lambda: all(_known(node) == len(nodes) for node in nodes))
        for node, master in zip(nodes[masters:], nodes, strict=False):
            node.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        wait_until("the Cluster", lambda: all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in nodes))
        wait_until("the replicas", lambda: all(map(_in_sync, nodes[masters:])))
        yield nodes


def holds(node: Server, key: str) -> bool:
    """Whether the key's slot is this master's."""
    slot, mine = node.ask("CLUSTER", "KEYSLOT", key), node.ask("CLUSTER", "MYID")
    return any(low <= slot <= high and master[2] == mine for low, high, master, *_ in node.ask("CLUSTER", "SLOTS"))


def _in_sync(replica: Server) -> bool:
    return replica.ask("INFO", "replication")["master_link_status"] == "up"


def _known(node: Server) -> int:
    return len(node.ask("CLUSTER", "NODES").splitlines())


class CuttingProxy:
    """Passes TCP on to a Redis. Once armed, it carries one script there and loses its reply and the connection."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.armed = False
        self.cuts = 0

    async def __aenter__(self) -> CuttingProxy:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        script_sent = False

        async def requests() -> None:
            nonlocal script_sent
            while data := await client.read(1 << 16):
                script_sent = script_sent or b"EVALSHA" in data
                to_server.write(data)
                await to_server.drain()

        async def replies() -> None:
            nonlocal script_sent
            while data := await server.read(1 << 16):
                if self.armed and script_sent:
                    self.armed, self.cuts = False, self.cuts + 1
                    break
                script_sent = False
                to_client.write(data)
                await to_client.drain()

        pumps = [asyncio.create_task(requests()), asyncio.create_task(replies())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            to_client.close()
            to_server.close()
