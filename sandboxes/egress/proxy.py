"""The HTTP proxy of one sandbox: which hosts its agent may reach, and one log line for each request.

    agent ── HTTPS_PROXY ──▶ 127.0.0.1:3128, this, in the sandbox's own network namespace, which has no other way out
                                 │ allowed, and not blocked?  no ──▶ 403
                                 └─ Unix socket ──▶ sandboxes.egress.exit ──▶ a connection to an address it checked

CONNECT carries TLS alone, to the host that it names: the server name of the TLS handshake is compared with it, so that
no blocked host is reached under the name of an allowed one. Plain HTTP carries one request a connection, `Host` set to
the host that was checked. What is inside TLS can't be seen: a host is allowed or blocked as a whole.

Not Squid nor tinyproxy: where a sandbox has no network one side must be a Unix socket, which neither has; Squid checks
an address and then connects by the name; and neither keeps rules and a log for each of a thousand sandboxes. A process
for each sandbox bounds what a flood of one does to the others.

Runs in a container (sandboxes.egress.containers), on Python 3.11 or later and the standard library alone. It takes one
argument, JSON: `socket` of the exit, `allow` and `block`. Each request is one line of JSON on stdout; SIGTERM ends the
requests under way and the process.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence

from sandboxes.egress.rules import Refused, Request, Rules, is_address, parse, server_name

PORT = 3128
HEAD_S = 30.0  # for a client to say what it wants
EXIT_S = 60.0  # for the exit to resolve, check and connect
IDLE_S = 600.0  # without a byte in either direction
CHUNK_BYTES = 64 * 1024  # of a head, and of what is on its way in one direction
CONNECTIONS = 64  # at once; with CHUNK_BYTES, what bounds memory
LOG_BYTES = 16 << 20  # then nothing more is let through: what isn't logged doesn't happen
REASONS = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 411: "Length Required", 502: "Bad Gateway"}


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Of one HTTP request. Raises Refused, EOFError where a client leaves without one."""
    try:
        async with asyncio.timeout(HEAD_S):
            return await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        raise Refused("no request in time", 408, "failed") from None
    except asyncio.LimitOverrunError:
        raise Refused(f"a head of over {CHUNK_BYTES} bytes", 431) from None


async def read_hello(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """The first TLS record of a client, and the host it names. Raises Refused for anything but TLS, EOFError."""
    try:
        async with asyncio.timeout(HEAD_S):
            header = await reader.readexactly(5)
            if header[:2] != b"\x16\x03":
                raise Refused("CONNECT without TLS")
            body = await reader.readexactly(int.from_bytes(header[3:]))
    except TimeoutError:
        raise Refused("CONNECT without TLS") from None
    if body[:1] != b"\x01":
        raise Refused("CONNECT without TLS")
    return header + body, server_name(body)


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to receive."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def ask_exit(path: str, request: Request, block: Sequence[str]) -> tuple[str, socket.socket]:
    """The address and a connected socket, from the exit at the Unix socket `path`. Raises Refused."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(EXIT_S):
                await loop.sock_connect(sock, path)
                ask = {"host": request.host, "port": request.port, "block": block}
                await loop.sock_sendall(sock, json.dumps(ask).encode())
                await readable(sock)
            data, fds, *_ = socket.recv_fds(sock, CHUNK_BYTES, 1)
        except (OSError, TimeoutError) as error:
            raise Refused(f"no way out: {type(error).__name__}", 502, "failed") from error
    answer = json.loads(data or b'{"failed": "no way out: it closed"}')
    if "refused" in answer:
        raise Refused(answer["refused"])
    if "failed" in answer:
        raise Refused(answer["failed"], 502, "failed")
    return answer["address"], socket.socket(fileno=fds[0])


class Connection:
    """One connection of a client, of one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client, self._to_client = reader, writer
        self._began = self._active = time.monotonic()
        self._began_at = time.time()
        self._request = Request("", "", 0)
        self._address = self._why = ""
        self._verdict = "failed"
        self._bytes = {"sent": 0, "received": 0}

    def line(self) -> str:
        """What is logged of it: `verdict` is allowed, refused, or failed, and `why` says it of the last two."""
        request = self._request
        asked = {"method": request.method, "host": request.host, "port": request.port, "address": self._address}
        found = {"verdict": self._verdict, "why": self._why, **self._bytes}
        return json.dumps(
            {"at": round(self._began_at, 3), **asked, **found, "seconds": round(time.monotonic() - self._began, 3)}
        )

    async def run(self, rules: Rules, exit_path: str, room: bool) -> bool:
        """From the request to the end of its answer; False where there was no request."""
        try:
            if not room:
                raise Refused("the log is full, or too many connections are open", 503)
            server, to_server = await self._reach(rules, exit_path)
            try:
                await self._carry(server, to_server)
            finally:
                to_server.close()
        except Refused as refused:
            self._verdict, self._why = refused.verdict, str(refused)
            if self._request.method != "CONNECT" or not self._address:
                self._reply(refused.status, f"{refused}\n")
        except asyncio.CancelledError:
            self._why = "cut: the sandbox ended"
            raise
        except EOFError:
            self._why = "the client left"
        except (OSError, TimeoutError) as error:
            self._why = f"cut: {type(error).__name__}"
        finally:
            self._to_client.close()
        return bool(self._request.method or self._why != "the client left")

    async def _reach(self, rules: Rules, exit_path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the host that is asked for. Raises Refused, EOFError."""
        self._request = request = parse(await read_head(self._client))
        if why := rules.refusal(request.host, request.port):
            raise Refused(why)
        self._address, sock = await ask_exit(exit_path, request, rules.ranges)
        return await asyncio.open_connection(sock=sock, limit=CHUNK_BYTES)

    def _reply(self, status: int, text: str) -> None:
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Unavailable')}\r\ncontent-type: text/plain\r\n"
        self._to_client.write(f"{head}content-length: {len(text)}\r\nconnection: close\r\n\r\n{text}".encode())

    async def _carry(self, server: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        first, up_to = self._request.head, self._request.body_bytes
        if self._request.method == "CONNECT":
            self._to_client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            first, name = await read_hello(self._client)
            if name != self._request.host and not (name == "" and is_address(self._request.host)):
                raise Refused(f"TLS names {name[:255] or 'no host'} instead")
            up_to = None
        self._verdict = "allowed"
        to_server.write(first)
        self._bytes["sent"] = len(first)
        upward = asyncio.create_task(self._pump(self._client, to_server, "sent", up_to))
        try:
            await self._pump(server, self._to_client, "received", None)
        finally:
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, count: str, up_to: int | None
    ) -> None:
        """`up_to` bytes at most, as fast as they are taken, until the source ends. Raises TimeoutError when idle."""
        while up_to is None or up_to > 0:
            try:
                async with asyncio.timeout(IDLE_S):
                    data = await source.read(min(CHUNK_BYTES, up_to or CHUNK_BYTES))
            except TimeoutError:
                if time.monotonic() - self._active < IDLE_S:  # the other direction isn't
                    continue
                raise
            if not data:
                if to.can_write_eof():
                    to.write_eof()
                return
            self._active = time.monotonic()
            self._bytes[count] += len(data)
            up_to = None if up_to is None else up_to - len(data)
            to.write(data)
            async with asyncio.timeout(IDLE_S):
                await to.drain()


class Proxy:
    """All connections of one sandbox."""

    def __init__(self, rules: Rules, exit_path: str) -> None:
        self._rules, self._exit_path = rules, exit_path
        self._open: set[asyncio.Task] = set()
        self._logged_bytes = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._open.add(task)
        connection, asked = Connection(reader, writer), True
        try:
            room = len(self._open) <= CONNECTIONS and self._logged_bytes < LOG_BYTES
            asked = await connection.run(self._rules, self._exit_path, room)
        finally:
            self._open.discard(task)
            if asked and self._logged_bytes < LOG_BYTES:
                line = connection.line()
                self._logged_bytes += len(line)
                print(line, flush=True)

    async def serve(self, port: int) -> None:
        """Until SIGTERM; what is under way then is cut, and logged as far as it came."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = await asyncio.start_server(self.accept, "127.0.0.1", port, limit=CHUNK_BYTES)
        print("listening", file=sys.stderr, flush=True)
        await stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asyncio.run(Proxy(Rules(asked["allow"], asked["block"]), asked["socket"]).serve(PORT))
