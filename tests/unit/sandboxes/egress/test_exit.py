"""Which addresses an exit connects to."""

import asyncio
import socket

import pytest

from sandboxes.egress.exit import Refused, connect, refusal

EVERYTHING = ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize("address", ["10.0.0.1", "172.17.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "203.0.113.1"])
def test_what_is_not_public_is_reached_where_a_range_says_so(address):
    assert refusal(address) == f"{address} is not public"
    assert refusal(address, EVERYTHING) == ""
    assert refusal(address, EVERYTHING, block=EVERYTHING) == f"{address} is blocked"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "fe80::1%eth0", "169.254.169.254", "224.0.0.1", "ff02::1"),
        *("168.63.129.16", "100.100.100.200", "fd00:ec2::254"),  # clouds' own
        *("::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),  # IPv4 in IPv6
    ],
)
def test_loopback_link_local_and_metadata_are_never_reached(address):
    assert refusal(address) and refusal(address, EVERYTHING)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:50c0:8000::153", "::ffff:93.184.216.34"])
def test_what_is_public_is_reached(address):
    assert refusal(address) == ""
    assert refusal(address, block=["93.184.0.0/16", "2606:50c0::/32"]) == f"{address} is blocked"


async def test_nothing_is_connected_where_one_of_the_addresses_is_refused(monkeypatch):
    tried = []

    async def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ("10.0.0.1", "127.0.0.1")]

    async def sock_connect(sock, address):
        tried.append(address)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    with pytest.raises(Refused, match="127.0.0.1"):
        await connect("a.org", 80, EVERYTHING, [])
    assert tried == []
