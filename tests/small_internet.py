"""An internet for tests: one container with a name server, plain HTTP and TLS, on a Docker network of its own."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import docker

IMAGE = "klong-net"  # which has python3
START_S = 30.0

SERVER = r"""
import http.server, json, socket, ssl, sys, threading

names, me = json.loads(sys.argv[1]), socket.gethostbyname(socket.gethostname())
asked = {}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        length = int(self.headers.get("Content-Length", 0))
        text = f"{self.headers['Host']} {self.path} {self.rfile.read(length).decode()}".strip()
        body = b"x" * int(self.path[5:]) if self.path.startswith("/big/") else text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_):
        pass

def answer(query):
    name, at = [], 12
    while query[at]:
        name.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, kind = ".".join(name), query[at + 2]
    rounds = names.get(name) if kind == 1 else []
    found = []
    if rounds:
        found = rounds[min(asked.get(name, 0), len(rounds) - 1)]
        asked[name] = asked.get(name, 0) + 1
    code = b"\x81\x83" if rounds is None else b"\x81\x80"
    head = query[:2] + code + b"\0\1" + len(found).to_bytes(2) + bytes(4)
    records = [socket.inet_aton(me if each == "me" else each) for each in found]
    return head + query[12 : at + 5] + b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + each for each in records)

def resolve():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("", 53))
    while True:
        query, client = udp.recvfrom(512)
        udp.sendto(answer(query), client)

open("/cert.pem", "w").write(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/cert.pem")
threading.Thread(target=resolve).start()
for port in (80, 443, 8080):
    server = http.server.ThreadingHTTPServer(("", port), Handler)
    if port == 443:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever).start()
print("listening", flush=True)
"""


class SmallInternet:
    """`names` maps a name to the addresses of its first answer, its second, and so on; the last stays. "me": its own.

    `via`, `dns` and `range` are what an Egress takes to be on it.
    """

    def __init__(self, folder: Path, name: str, names: dict[str, list[list[str]]]) -> None:
        self._client = docker.DockerClient.from_env()
        self.via = name
        self._network = self._client.networks.create(name)
        self._network.reload()
        self.range = self._network.attrs["IPAM"]["Config"][0]["Subnet"]
        pem, ask = folder / "cert.pem", "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test"
        subprocess.run([*ask.split(), "-keyout", pem, "-out", folder / "only"], check=True, capture_output=True)
        command = ["python3", "-c", SERVER, json.dumps(names), pem.read_text() + (folder / "only").read_text()]
        self._server = self._client.containers.run(IMAGE, command, network=name, user="0", working_dir="/", detach=True)
        give_up = time.monotonic() + START_S
        while b"listening" not in (said := self._server.logs()):
            assert time.monotonic() < give_up, f"the small internet doesn't listen within {START_S:g} s: {said}"
            time.sleep(0.05)
        self._server.reload()
        self.dns = self._server.attrs["NetworkSettings"]["Networks"][name]["IPAddress"]

    def close(self) -> None:
        self._server.remove(force=True)
        self._network.remove()
        self._client.close()
