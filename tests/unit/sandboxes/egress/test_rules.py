"""Which requests a proxy lets through: hosts, and heads that two readers could understand differently."""

import asyncio
import ssl

import pytest

from sandboxes.egress.rules import Refused, Rules, parse, server_name


@pytest.mark.parametrize(
    ("allow", "block", "host", "port", "why"),
    [
        (["a.org"], [], "a.org", 443, ""),
        (["a.org"], [], "a.org", 80, ""),
        (["a.org"], [], "a.org", 22, "not allowed"),
        (["a.org:22"], [], "a.org", 22, ""),
        (["a.org:22"], [], "a.org", 443, "not allowed"),
        (["a.org"], [], "www.a.org", 443, "not allowed"),
        (["*.a.org"], [], "www.a.org", 443, ""),
        (["*.a.org"], [], "a.org", 443, "not allowed"),
        (["*.a.org"], [], "nota.org", 443, "not allowed"),
        (["A.org."], [], "a.org", 443, ""),
        ([], [], "a.org", 443, "not allowed"),
        (["*"], [], "a.org", 443, ""),
        (["*"], ["a.org"], "a.org", 443, "blocked"),
        (["a.org"], ["a.org"], "a.org", 443, "blocked"),
        (["www.a.org"], ["a.org"], "www.a.org", 443, "blocked"),
        (["*"], ["a.org"], "nota.org", 443, ""),
        (["*"], ["https://a.org/owner/name"], "a.org", 443, "blocked"),
        (["*"], ["a.org:80"], "a.org", 443, ""),
        (["*"], ["*"], "a.org", 443, "blocked"),
        (["*"], [], "93.184.216.34", 443, "not allowed"),
        (["*"], [], "1572395042", 443, "not allowed"),
        (["*"], [], "2606:50c0:8000::153", 443, "not allowed"),
        (["93.184.216.34"], [], "93.184.216.34", 443, ""),
        (["[2606:50c0::1]:8443"], [], "2606:50c0::1", 8443, ""),
    ],
)
def test_block_wins_and_what_is_not_allowed_is_refused(allow, block, host, port, why):
    found = Rules(allow, block).refusal(host, port)
    assert why in found and bool(why) == bool(found)


@pytest.mark.parametrize("pattern", ["", "a b", "*a.org", "a.*", "a.org:x", "ä.org", "a@b.org"])
def test_a_pattern_that_means_nothing_is_refused(pattern):
    for allow, block in (([pattern], []), ([], [pattern])):
        with pytest.raises(ValueError, match="is no host"):
            Rules(allow, block)


def test_ranges_belong_in_block():
    assert Rules([], ["10.0.0.0/8", "a.org"]).ranges == ["10.0.0.0/8"]
    with pytest.raises(ValueError, match="egress.ranges"):
        Rules(["10.0.0.0/8"], [])


def test_a_request_goes_on_with_the_host_that_was_checked():
    headers = b"Host: b.org\r\nProxy-Authorization: x\r\nConnection: keep-alive\r\nX: y\r\n\r\n"
    request = parse(b"GET http://A.org/p?q HTTP/1.1\r\n" + headers)
    assert (request.method, request.host, request.port, request.body_bytes) == ("GET", "a.org", 80, 0)
    assert request.head == b"GET /p?q HTTP/1.1\r\nhost: A.org\r\nconnection: close\r\nx: y\r\n\r\n"
    assert parse(b"POST http://a.org:81 HTTP/1.0\r\nContent-Length: 12\r\n\r\n")[2::2] == (81, 12)
    assert parse(b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n")[:3] == ("CONNECT", "::1", 443)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /path HTTP/1.1", 400),
        (b"GET https://a.org/ HTTP/1.1", 400),
        (b"GET http://a.org/\nHost:b.org HTTP/1.1", 400),
        (b"GET http://a.org/ HTTP/1.1\r\nX: 1\nHost: b.org", 400),
        (b"GET http://a.org/ HTTP/1.1\r\nHost : b.org", 400),
        (b"GET http://user@a.org/ HTTP/1.1", 400),
        (b"GET http://a.org:80:81/ HTTP/1.1", 400),
        (b"GET http://a.org\x00.b.org/ HTTP/1.1", 400),
        (b"GET http://\xe4.org/ HTTP/1.1", 400),
        (b"CONNECT a.org HTTP/1.1", 400),
        (b"CONNECT a.org:99999 HTTP/1.1", 400),
        (b"CONNECT a.org:443/x HTTP/1.1", 400),
        (b"POST http://a.org/ HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        (b"POST http://a.org/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST http://a.org/ HTTP/1.1\r\nContent-Length: +1", 400),
        (b"", 400),
        (b"\x16\x03\x01", 400),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(head, status):
    with pytest.raises(Refused) as refused:
        parse(head + b"\r\n\r\n")
    assert refused.value.status == status


def hello(name):
    """The first handshake message of a real TLS client."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()[5:]


def test_the_host_that_a_tls_client_names_is_found():
    assert server_name(hello("some.host.example")) == "some.host.example"
    assert server_name(hello("10.0.0.1")) == ""
    for cut in range(len(hello("a.org"))):
        try:
            server_name(hello("a.org")[:cut])
        except Refused:
            continue


async def test_the_proxy_answers_on_its_own_where_it_has_no_way_out(tmp_path, capsys):
    from sandboxes.egress.proxy import Proxy

    server = await asyncio.start_server(Proxy(Rules(["a.org"], []), str(tmp_path / "none")).accept, "127.0.0.1", 0)
    async with server:
        answers = []
        for head in (b"GET http://a.org/ HTTP/1.1", b"GET http://b.org/ HTTP/1.1", b"x" * 70000, b"\x00"):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(head + b"\r\n\r\n")
            answers.append((await reader.readline()).split()[1])
            writer.close()
    assert answers == [b"502", b"403", b"431", b"400"]
    assert capsys.readouterr().out.count("\n") == 4
