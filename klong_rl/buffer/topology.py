"""How to reach the Redis that holds a run: one server, the master that Sentinels name, or a node of a Cluster.

Each wraps one of redis-py's clients. None of them tries anything twice: `Connection.attempt` does, and remembers why.
What failed is looked up anew by the attempt that follows: a host name, the master, the node that holds the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff

from klong_rl.buffer.url import RedisUrl

CONNECT_S = 5.0  # to a host that is gone without a word
SENTINEL_S = 1.0  # for one Sentinel: it answers at once or is down, and then the next is asked


class Script(NamedTuple):
    source: str
    sha: str  # SHA-1 of it, in hex: its name in Redis


class OneServer:
    """`redis://`, `unix://`."""

    def __init__(self, url: RedisUrl, reply_s: float):
        self.client: Redis | RedisCluster = Redis.from_pool(ConnectionPool(**_settings(url, reply_s)))

    async def run(self, script: Script, key: str, args: Sequence[Any]) -> Any:
        """What the script answers. A restarted server or a new master doesn't know it yet, and learns it by EVAL."""
        try:
            return await self.client.evalsha(script.sha, 1, key, *args)
        except exceptions.NoScriptError:
            return await self.client.eval(script.source, 1, key, *args)
        except exceptions.ReadOnlyError:  # demoted: its name may lead to another server by now, its connections don't
            await self.client.connection_pool.disconnect(inuse_connections=False)
            raise

    async def send(self, key: str, commands: Sequence[tuple]) -> list[Any]:
        """What the server that holds `key` answers to these commands, sent at once."""
        if len(commands) == 1:  # half the time of a pipeline of one
            return [await self.client.execute_command(*commands[0])]
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute()

    async def close(self) -> None:
        await self.client.aclose(close_connection_pool=True)


class Sentinels(Sentinel):
    """redis-py's, with an error that people can read."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            return await super().discover_master(service_name)
        except MasterNotFoundError as error:  # it prints every client with all its settings
            failures = sorted(set(re.findall(r" - (?:\w+:)?(\w+)", str(error))))
            said = f"asking them failed with {', '.join(failures)}" if failures else "they know none that is well"
            kind = exceptions.AuthenticationError if failures == ["AuthenticationError"] else exceptions.ConnectionError
            raise kind(f"no Sentinel names a master of {service_name}: {said}") from None


class SentinelMaster(OneServer):
    """`redis+sentinel://`: each new connection asks a Sentinel first; redis-py drops those to a demoted master."""

    def __init__(self, url: RedisUrl, reply_s: float):
        settings = _settings(url, reply_s)
        to_sentinels = {name: value for name, value in settings.items() if name.startswith("ssl")} | url.sentinel_login
        timeouts = {"socket_timeout": SENTINEL_S, "socket_connect_timeout": SENTINEL_S}
        self._sentinels = Sentinels(url.hosts, sentinel_kwargs=to_sentinels | timeouts | {"retry": settings["retry"]})
        self.client = self._sentinels.master_for(url.service, **settings)

    async def close(self) -> None:
        await super().close()
        await self._sentinels.aclose()


class ClusterNodes(OneServer):
    """`redis+cluster://`. All keys of a run lie in one slot, so one node holds them."""

    def __init__(self, url: RedisUrl, reply_s: float):
        nodes = [ClusterNode(host, port) for host, port in url.hosts]
        self.client = RedisCluster(startup_nodes=nodes, **_settings(url, reply_s))
        self._map_is_old = False

    async def send(self, key: str, commands: Sequence[tuple]) -> list[Any]:
        await self.client.initialize()  # the map of slots, unless there is one
        if self._map_is_old:
            await self.client.nodes_manager.initialize()
            self._map_is_old = False
        node = self.client.get_node_from_key(key)
        pipe = self.client.pipeline()
        for command in commands:
            pipe.execute_command(*command, target_nodes=node)
        try:
            return await pipe.execute()
        except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterDownError):
            self._map_is_old = True  # a single command that fails so renews the map by itself, a pipeline doesn't
            raise

    async def close(self) -> None:
        await self.client.aclose()


def _settings(url: RedisUrl, reply_s: float) -> dict[str, Any]:
    """Of redis-py's connections to Redis; `reply_s` is what one reply may take."""
    return url.options | {
        "socket_timeout": reply_s,
        "socket_connect_timeout": min(CONNECT_S, reply_s),
        "retry": Retry(NoBackoff(), 0),
    }


KINDS: dict[str, type[OneServer]] = {"server": OneServer, "sentinel": SentinelMaster, "cluster": ClusterNodes}
