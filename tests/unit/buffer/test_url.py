"""What `buffer.url` may be is read as it is meant; the rest is refused in one line that shows no password."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from klong_rl.buffer import BufferAddress
from klong_rl.buffer.url import parse

LOGIN = "ann:p%40ss%2Fw%3Ard@"
SAID = {"username": "ann", "password": "p@ss/w:rd"}


@pytest.mark.parametrize(
    "url, kind, hosts, service, options",
    [
        ("unix:///r/redis%20a.sock", "server", (), "", {"path": "/r/redis a.sock"}),
        (f"unix://{LOGIN}/r.sock", "server", (), "", SAID | {"path": "/r.sock"}),
        ("redis://h", "server", (), "", {"host": "h"}),
        (f"redis://{LOGIN}h:7/3", "server", (), "", SAID | {"host": "h", "port": 7, "db": 3}),
        ("redis://[::1]:7", "server", (), "", {"host": "::1", "port": 7}),
        ("rediss://h?ssl_ca_certs=/ca&ssl_check_hostname=no", "server", (), "",
         {"host": "h", "ssl_ca_certs": "/ca", "ssl_check_hostname": False}),
        (f"redis+sentinel://{LOGIN}a,b:7/main/3", "sentinel", (("a", 26379), ("b", 7)), "main", SAID | {"db": 3}),
        ("rediss+sentinel://a/main?ssl_ca_certs=/ca", "sentinel", (("a", 26379),), "main",
         {"ssl": True, "ssl_ca_certs": "/ca"}),
        (f"redis+cluster://{LOGIN}a:7,[::1]:8,c", "cluster", (("a", 7), ("::1", 8), ("c", 6379)), "", SAID),
        ("rediss+cluster://a/0?ssl_certfile=/c", "cluster", (("a", 6379),), "", {"ssl": True, "ssl_certfile": "/c"}),
    ],
)  # fmt: skip
def test_every_form_is_read(url: str, kind: str, hosts: tuple, service: str, options: dict) -> None:
    read = parse(url)
    assert (read.kind, read.hosts, read.service) == (kind, hosts, service)
    connection = read.options.pop("connection_class", None)
    assert read.options == ({"db": 0} if url.endswith("/0?ssl_certfile=/c") else {}) | options
    plain = UnixDomainSocketConnection if url.startswith("unix") else None
    assert connection is (SSLConnection if url.startswith("rediss://") else plain)
    assert "ann" not in read.shown and "p%40ss" not in read.shown and "?" not in read.shown


def test_a_log_in_of_the_sentinels_is_their_own() -> None:
    read = parse(f"redis+sentinel://{LOGIN}a/main?sentinel_username=bob&sentinel_password=x%26y")
    assert read.options == SAID and read.sentinel_login == {"username": "bob", "password": "x&y"}


SECRET = "s3cret"


@pytest.mark.parametrize(
    "url, says",
    [
        (f"ann:{SECRET}@h:6379", "has no scheme; use unix:///path, redis://host"),
        (f"http://ann:{SECRET}@h", "begins with http://; use unix"),
        (f"unix+cluster://ann:{SECRET}@h", "begins with unix.cluster://"),
        (f"redis+sentinels://ann:{SECRET}@h/main", "begins with redis.sentinels://"),
        ("redis://", "lacks a host"),
        (f"redis://ann:{SECRET}@h:port", "has one that can't be read"),
        (f"redis://ann:12/{SECRET}@h", "percent-encode"),
        (f"redis://ann:12?{SECRET}@h", "percent-encode"),
        (f"redis://ann:12#{SECRET}@h", "percent-encode"),
        (f"redis://ann:[{SECRET}@h", "percent-encode"),
        (f"redis://ann:{SECRET}/x", "has one that can't be read"),
        (f"redis://ann:{SECRET}@h/three", "redis://h/three: three is no number of a database"),
        (f"redis://ann:{SECRET}@a,b", "redis://a,b names several hosts; use redis.sentinel:// or redis.cluster://"),
        (f"redis+sentinel://ann:{SECRET}@a,b", "names no service; use redis.sentinel://host,host/SERVICE"),
        (f"redis+sentinel://ann:{SECRET}@a,,b/main", "lacks a host"),
        (f"redis+cluster://ann:{SECRET}@a/3", "a Cluster has database 0 alone"),
        (f"redis://h?password={SECRET}", "option password isn't taken; use client_name"),
        (f"redis://ann:{SECRET}@h?ssl_ca_certs=/ca", "option ssl_ca_certs isn't taken"),
        (f"rediss://ann:{SECRET}@h?ssl_ca_cert=/ca", "option ssl_ca_cert isn't taken; use .*ssl_ca_certs"),
        (f"redis://ann:{SECRET}@h?socket_timeout=1", "option socket_timeout isn't taken"),
        (f"redis+cluster://ann:{SECRET}@h?sentinel_password=1", "option sentinel_password isn't taken"),
        (f"redis://ann:{SECRET}@h?health_check_interval=often", "Invalid value for 'health_check_interval'"),
    ],
)
def test_anything_else_is_refused_in_one_line_that_shows_no_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as found:
        parse(url)
    error: BaseException | None = found.value
    assert "\n" not in str(error)
    assert SECRET not in str(error) and error.__suppress_context__ is (error.__context__ is not None)
    with pytest.raises(ValueError, match="buffer.url"):
        BufferAddress(url, "run")
