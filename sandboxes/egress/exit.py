"""The way out of the sandboxes of one run on one host: resolves a name, checks its addresses, connects, hands over.

    proxy ──{"host", "port", "block"}──▶ exit: resolve once ─▶ every address allowed? ─▶ connect to one of those
          ◀──{"address"} + the connected socket, as a file descriptor ─────────────────────┘

Names resolve here and nowhere else, and what is connected to is what was checked: a name whose next answer is another
address (DNS rebinding) gains nothing. The bytes of a connection don't pass through here.

Runs in a container (sandboxes.egress.containers), on Python 3.11 or later and the standard library alone. It takes one
argument, JSON: `socket`, the path to listen on, and `ranges`, the networks that are reachable though not public.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Sequence

RESOLVE_S = 10.0
CONNECT_S = 10.0  # to one address
ASK_S = 10.0  # for a proxy to say what it wants
ASK_BYTES = 64 * 1024
# Not public, or not part of any network: out of reach even where a range of the configuration holds it.
NEVER = tuple(
    map(ipaddress.ip_network, ("127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8", "::1/128", "::/128", "fe80::/10"))
)
METADATA = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128")))
EMBEDDED = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address behind a NAT64


def unwrapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address where an IPv6 one only carries it.

    >>> unwrapped("::ffff:10.0.0.1"), unwrapped("64:ff9b::a00:1"), unwrapped("2002:a00:1::")
    (IPv4Address('10.0.0.1'), IPv4Address('10.0.0.1'), IPv4Address('10.0.0.1'))
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in EMBEDDED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        return inner or found
    return found


def refusal(address: str, ranges: Sequence[str] = (), block: Sequence[str] = ()) -> str:
    """Why nobody may connect to `address`, or "". `ranges` are reachable though not public; `block` wins.

    >>> refusal("93.184.216.34"), refusal("10.1.2.3"), refusal("10.1.2.3", ["10.1.0.0/16"])
    ('', '10.1.2.3 is not public', '')
    >>> refusal("169.254.169.254", ["0.0.0.0/0"]), refusal("93.184.216.34", block=["93.184.0.0/16"])
    ('169.254.169.254 is never reachable', '93.184.216.34 is blocked')
    """
    found = unwrapped(address)
    if any(found in network for network in (*NEVER, *METADATA)) or found.is_multicast:
        return f"{address} is never reachable"
    if any(found in ipaddress.ip_network(network) for network in block):
        return f"{address} is blocked"
    if found.is_global or any(found in ipaddress.ip_network(network) for network in ranges):
        return ""
    return f"{address} is not public"


class Refused(Exception):
    """A name that leads where nobody may go."""


async def connect(host: str, port: int, ranges: Sequence[str], block: Sequence[str]) -> tuple[str, socket.socket]:
    """The address and a connected socket. Raises Refused where one of the addresses is, OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(RESOLVE_S):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if why := refusal(address[0], ranges, block):
            raise Refused(why)
    last: Exception = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(sock, address)
            return address[0], sock
        except (OSError, TimeoutError) as error:
            last = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise last


async def answer(proxy: socket.socket, ranges: Sequence[str]) -> None:
    """One request of a proxy: one message in, one message out."""
    loop = asyncio.get_running_loop()
    with proxy:
        async with asyncio.timeout(ASK_S):
            ask = json.loads(await loop.sock_recv(proxy, ASK_BYTES))
        try:
            address, sock = await connect(ask["host"], ask["port"], ranges, ask["block"])
        except Refused as refused:
            proxy.send(json.dumps({"refused": str(refused)}).encode())
        except TimeoutError:
            proxy.send(json.dumps({"failed": "no answer in time"}).encode())
        except OSError as error:
            proxy.send(json.dumps({"failed": error.strerror or str(error)}).encode())
        else:
            with sock:
                socket.send_fds(proxy, [json.dumps({"address": address}).encode()], [sock.fileno()])


async def serve(path: str, ranges: Sequence[str]) -> None:
    """Answer proxies at the Unix socket `path` until the process is killed."""
    loop = asyncio.get_running_loop()
    if os.path.exists(path):
        os.unlink(path)  # of the process before a restart
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.setblocking(False)
        listening.bind(path)
        os.chmod(path, 0o666)  # proxies have another user, and only they have the volume
        listening.listen(128)
        under_way: set[asyncio.Task] = set()
        while True:
            proxy, _ = await loop.sock_accept(listening)
            proxy.setblocking(False)
            task = asyncio.create_task(answer(proxy, ranges))
            under_way.add(task)
            task.add_done_callback(under_way.discard)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asyncio.run(serve(asked["socket"], asked["ranges"]))
