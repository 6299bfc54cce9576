"""What a proxied request asks for, and whether it may: hosts, patterns, the heads of HTTP and TLS. No input or output.

Loaded on the host, to check a task's patterns, and in the proxy's container (sandboxes.egress.proxy), with the standard
library alone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

WEB = (80, 443)  # where an entry of `allow` names no port
NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
PATTERN = re.compile(r"(?P<host>\*|(\*\.)?[a-z0-9_.-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
HOP_BY_HOP = {"connection", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "upgrade"}


class Refused(Exception):
    """A request that is answered by `status` and logged as `verdict`."""

    def __init__(self, why: str, status: int = 403, verdict: str = "refused") -> None:
        super().__init__(why)
        self.status, self.verdict = status, verdict


class Request(NamedTuple):
    method: str
    host: str
    port: int
    head: bytes = b""  # for the server; none of a CONNECT
    body_bytes: int = 0


def is_address(host: str) -> bool:
    """In any of the forms that a resolver takes for an address.

    >>> [is_address(host) for host in ("10.0.0.1", "2130706433", "0x7f.1", "::1", "a1.example")]
    [True, True, True, True, False]
    """
    try:
        if ":" in host:
            return bool(ipaddress.ip_address(host))
        return bool(socket.inet_aton(host))
    except (OSError, ValueError):
        return False


def is_range(pattern: str) -> bool:
    """Whether an entry of `block` is of addresses rather than names.

    >>> is_range("140.82.112.0/20"), is_range("2606:50c0::/32"), is_range("github.com/openai")
    (True, True, False)
    """
    try:
        return bool(ipaddress.ip_network(pattern))
    except ValueError:
        return False


def split(pattern: str) -> tuple[str, int | None]:
    """Host and port of an entry of `allow` or `block`; ValueError for what is none. Of a URL, its host counts.

    >>> split("*.PyPI.org"), split("mirror.example:8080"), split("https://github.com/openai/frontier-evals")
    (('*.pypi.org', None), ('mirror.example', 8080), ('github.com', None))
    """
    authority = pattern.lower().partition("://")[2] or pattern.lower()
    found = PATTERN.fullmatch(authority.partition("/")[0].rstrip("."))
    if found is None:
        raise ValueError(f"{pattern!r} is no host: write name, *.name, *, or one of them with :port")
    return found["host"].strip("[]"), int(found["port"]) if found["port"] else None


class Rules:
    """`allow` names hosts, with `*.` all that is under one, with `*` all; at ports 80 and 443, or at the one it names.

    `block` wins: a host, all that is under it, at every port or at the one it names; a URL, its whole host. Ranges of
    addresses in it are compared with what a name resolves to. An address in place of a name is reached only where
    `allow` spells it out.
    """

    def __init__(self, allow: Sequence[str], block: Sequence[str]) -> None:
        for pattern in allow:
            if "/" in pattern and is_range(pattern):
                raise ValueError(f"{pattern!r} in allow is no host: what isn't public is for sandbox.egress.ranges")
        self.ranges = [pattern for pattern in block if is_range(pattern)]
        self._allow = [split(pattern) for pattern in allow]
        self._block = [split(pattern) for pattern in block if not is_range(pattern)]

    def refusal(self, host: str, port: int) -> str:
        """Why this host may not be asked for, or "".

        >>> Rules(["*"], ["github.com"]).refusal("api.github.com", 443), Rules(["a.org"], []).refusal("a.org", 22)
        ('api.github.com is blocked', 'a.org:22 is not allowed')
        """
        for name, only in self._block:
            name = name.removeprefix("*.")
            if only in (None, port) and (name in ("*", host) or host.endswith(f".{name}")):
                return f"{host} is blocked"
        for name, only in self._allow:
            any_host = name == "*" or name.startswith("*.") and host.endswith(name[1:])
            if (port in WEB if only is None else port == only) and (name == host or any_host and not is_address(host)):
                return ""
        return f"{host}:{port} is not allowed"


def authority(text: str, port: int | None) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; `port` where it has none. Raises Refused, 400, for anything else."""
    text = text.lower()
    try:
        parts = urlsplit(f"//{text}")
        host, port = (parts.hostname or "").removesuffix("."), parts.port or port
        whole = parts.netloc == text and parts.username is None
    except ValueError:
        whole = False
    if not whole or port is None or not (NAME.fullmatch(host) or is_address(host)):
        raise Refused("no host and port that can be read", 400)
    return host, port


def parse(head: bytes) -> Request:
    """A request to a proxy, from its first line to the empty one. Raises Refused."""
    try:
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError:
        raise Refused("no HTTP request", 400) from None
    if not re.fullmatch("[A-Z]{1,16}", method) or version not in ("HTTP/1.0", "HTTP/1.1"):
        raise Refused("no HTTP request", 400)
    if any(CONTROL.search(line) for line in (first, *lines)):  # a lenient server would see another line
        raise Refused("a control character in the head", 400)
    if method == "CONNECT":
        return Request(method, *authority(target, None))
    if not target.startswith("http://"):
        raise Refused("neither CONNECT nor http://", 400)
    where, _, path = target.removeprefix("http://").partition("/")
    host, port = authority(where, 80)
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    body_bytes = content_length(headers)
    kept = [f"{name}: {value}" for name, value in headers if name not in HOP_BY_HOP]
    forward = [f"{method} /{path} HTTP/1.1", f"host: {where}", "connection: close", *kept, "", ""]
    return Request(method, host, port, "\r\n".join(forward).encode("latin-1"), body_bytes)


def content_length(headers: Sequence[tuple[str, str]]) -> int:
    """Bytes of the body. Raises Refused where two readers of the headers could disagree about it."""
    if any(not re.fullmatch("[a-z0-9_-]+", name) for name, _ in headers):
        raise Refused("a header that can't be read", 400)
    if any(name == "transfer-encoding" for name, _ in headers):
        raise Refused("a body without Content-Length", 411)
    lengths = [value for name, value in headers if name == "content-length"] or ["0"]
    if len(lengths) > 1 or not re.fullmatch("[0-9]{1,15}", lengths[0]):
        raise Refused("no Content-Length that can be read", 400)
    return int(lengths[0])


def server_name(hello: bytes) -> str:
    """The host that a TLS ClientHello names (RFC 8446 4.1.2, RFC 6066 3), "" for none. Raises Refused.

    `hello` is the handshake message without the header of its record.
    """
    try:
        at = 4 + 2 + 32  # message header, version, random
        at += 1 + hello[at]  # session
        at += 2 + int.from_bytes(hello[at : at + 2])  # cipher suites
        at += 1 + hello[at] + 2  # compression, length of the extensions
        while at < len(hello):
            kind, length = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
            if kind == 0:  # list length 2, type 1, name length 2, name
                return hello[at + 9 : at + 4 + length].decode("ascii").lower()
            at += 4 + length
    except (IndexError, UnicodeDecodeError):
        raise Refused("no TLS handshake that can be read") from None
    return ""
