"""What `buffer.url` may be, and how it is read. Nothing made here for people to read holds a password.

    unix:///path/redis.sock                                          a server on this machine
    redis://[user:password@]host[:6379][/db]                         a server
    redis+sentinel://[user:password@]h1[:26379],h2,.../SERVICE[/db]  the master of SERVICE, as its Sentinels name it
    redis+cluster://[user:password@]h1[:6379],h2,...                 a Redis Cluster, found through any of these nodes

`rediss` for `redis` anywhere: the same over TLS. Options follow as `?name=value&name=value`: redis-py's own `ssl_...`
(over TLS), `health_check_interval`, `client_name`, and for Sentinels that want a log-in of their own
`sentinel_username` and `sentinel_password`. What has a meaning in a URL is percent-encoded in a user or password.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis.asyncio import RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url

FORMS = (
    "unix:///path, redis://host, redis+sentinel://host,host/SERVICE or redis+cluster://host,host, with rediss for "
    "redis over TLS (docs/buffer.md)"
)
SENTINEL_PORT, REDIS_PORT = 26379, 6379
_KINDS = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}
_SCHEMES = {"unix"} | {f"{base}{'+' if kind else ''}{kind}" for base in ("redis", "rediss") for kind in _KINDS}
_OPTIONS = {"client_name", "health_check_interval"}  # timeouts, retries and encodings are the buffer's own
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}


class RedisUrl(NamedTuple):
    """A `buffer.url`, read."""

    kind: str  # server, sentinel or cluster
    hosts: tuple[tuple[str, int], ...]  # whom to ask where the run's Redis is; none for a server
    service: str  # what the Sentinels watch
    options: dict[str, Any]  # of redis-py's connections to Redis, as its `parse_url` gives them
    sentinel_login: dict[str, str]
    shown: str  # the URL without log-in and options


def parse(url: str) -> RedisUrl:
    """Raises ValueError, one line that names what is wrong and what is allowed."""
    scheme, found, _ = url.partition("://")
    base, _, topology = scheme.partition("+")
    if not found or scheme not in _SCHEMES:
        begins = f"begins with {scheme}://" if found else "has no scheme"  # without one, all of it may be a password
        raise ValueError(f"buffer.url {begins}; use {FORMS}")
    parts = _split(url, base)
    kind, hosts = _KINDS[topology], parts.netloc.rpartition("@")[2]
    shown = f"{scheme}://{hosts}{parts.path}"
    _check_options(parts, kind, base, shown)
    if base == "unix":
        return RedisUrl(kind, (), "", _options(url, shown), {}, shown)
    nodes = tuple(_host(host, SENTINEL_PORT if kind == "sentinel" else REDIS_PORT) for host in hosts.split(","))
    if kind == "server":
        if len(nodes) > 1:
            raise ValueError(f"buffer.url={shown} names several hosts; use {base}+sentinel:// or {base}+cluster://")
        _check_db(parts.path.strip("/"), shown)
        return RedisUrl(kind, (), "", _options(url, shown), {}, shown)
    return _several(parts, kind, base, nodes, shown)


def _several(parts: SplitResult, kind: str, base: str, nodes: tuple[tuple[str, int], ...], shown: str) -> RedisUrl:
    service, db = "", parts.path.strip("/")
    if kind == "sentinel":
        service, _, db = db.partition("/")
        if not service:
            raise ValueError(f"buffer.url={shown} names no service; use {base}+sentinel://host,host/SERVICE")
    elif db not in ("", "0"):
        raise ValueError(f"buffer.url={shown} names {db}, but a Cluster has database 0 alone; leave it out")
    _check_db(db, shown)
    login, at, _ = parts.netloc.rpartition("@")
    options = _options(f"{base}://{login}{at}host/{db}?{parts.query}", shown)
    del options["host"]
    sentinel_login = {to: options.pop(name) for name, to in _SENTINEL_LOGIN.items() if name in options}
    if options.pop("connection_class", None) is SSLConnection:  # their clients have connection classes of their own
        options["ssl"] = True
    return RedisUrl(kind, nodes, service, options, sentinel_login, shown)


def _split(url: str, base: str) -> SplitResult:
    """The parts of a URL whose log-in is where it belongs: nothing after its first "/" or "?" is a part of it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None  # its text quotes the URL
    if parts is None or "#" in url or (base != "unix" and "@" in parts.path + parts.query):
        raise ValueError("buffer.url can't be read; percent-encode : / ? # [ ] @ , and % in user, password and options")
    return parts


def _host(text: str, default_port: int) -> tuple[str, int]:
    """Of `host`, `host:port` or `[v6]:port`. Not shown in an error: it may be a part of a password."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ValueError(f"buffer.url lacks a host, or has one that can't be read; use {FORMS}")
    return host, default_port if port is None else port


def _check_db(text: str, shown: str) -> None:
    if text and not text.isdecimal():
        raise ValueError(f"buffer.url={shown}: {text} is no number of a database; use one, or none for 0")


def _check_options(parts: SplitResult, kind: str, base: str, shown: str) -> None:
    """Refuses what redis-py would only refuse later, or what the buffer sets itself."""
    taken = _OPTIONS | (_SENTINEL_LOGIN.keys() if kind == "sentinel" else set())
    if base == "rediss":
        takes = inspect.signature(RedisCluster if kind == "cluster" else SSLConnection).parameters
        taken |= {name for name in takes if name.startswith("ssl_")}
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in taken:
            raise ValueError(f"buffer.url={shown}: option {name} isn't taken; use {', '.join(sorted(taken))}")


def _options(url: str, shown: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError as error:
        raise ValueError(f"buffer.url={shown}: {error}") from None
