"""Sandboxes with a network: which hosts they reach through their proxy, what is logged, and that nothing is left."""

import asyncio
import json
import uuid

import docker
import pytest

from klong_rl.types import Limits, Network
from sandboxes import host
from sandboxes.base import InfrastructureFailure, TaskFailure
from sandboxes.docker import DockerSandboxes
from tests.small_internet import IMAGE, SmallInternet

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # an image of its own, and containers by the dozen

NAMES = {
    "allowed.test": [["me"]],
    "mirror.test": [["me"]],
    "blocked.test": [["me"]],
    "sub.blocked.test": [["me"]],
    "loop.test": [["127.0.0.1"]],
    "metadata.test": [["169.254.169.254"]],
    "private.test": [["10.255.254.253"]],
    "mixed.test": [["me", "127.0.0.1"]],
    "rebind.test": [["me"], ["127.0.0.1"]],
}
NETWORK = Network(allow=("*.test", "allowed.test:8080"), block=("blocked.test",))
# GET URL [BODY]: status and body, or the error.
CLIENT = """
import ssl, sys, urllib.request
ssl._create_default_https_context = ssl._create_unverified_context
data = sys.argv[2].encode() if sys.argv[2:] else None
try:
    print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], data), timeout=20).read(200).decode())
except Exception as error:
    print(getattr(error, "read", lambda: str(error).encode())().decode())
"""
# A CONNECT to one host, then TLS that names another.
FRONTING = """
import socket, ssl, sys
sock = socket.create_connection(("127.0.0.1", 3128))
sock.sendall(f"CONNECT {sys.argv[1]}:443 HTTP/1.1\\r\\n\\r\\n".encode())
print(sock.recv(1000).split()[1].decode())
context = ssl._create_unverified_context()
try:
    context.wrap_socket(sock, server_hostname=sys.argv[2])
    print("in")
except OSError:
    print("cut")
"""


@pytest.fixture(scope="module")
def internet(tmp_path_factory):
    made = SmallInternet(tmp_path_factory.mktemp("internet"), f"test-{uuid.uuid4().hex[:8]}", NAMES)
    yield made
    made.close()


@pytest.fixture
def client():
    made = docker.DockerClient.from_env()
    yield made
    made.close()


@pytest.fixture
async def make(internet, tmp_path, client):
    """Factories of one run; nothing of it is left at the end."""
    run, made = f"test-{uuid.uuid4().hex[:8]}", []

    def factory(**settings):
        egress = {"via": internet.via, "dns": [internet.dns], "ranges": [internet.range], "logs": str(tmp_path)}
        made.append(DockerSandboxes(run, egress=egress, **settings))
        return made[-1]

    yield factory
    for each in made:
        await each.close()
    await factory().reap(keep=set())
    await made[-1].close()
    assert leftovers(client, run) == []


def leftovers(client, run):
    found = []
    for label in ("klong.run", "klong.egress"):
        filters = {"label": f"{label}={run}"}
        found += client.containers.list(all=True, filters=filters) + client.volumes.list(filters=filters)
    return sorted(each.name.split(".")[0] for each in found)


def limits(network=NETWORK):
    return Limits(memory_mb=128, pids=32, disk_mb=16, network=network)


async def output(sandbox, command):
    return (await sandbox.exec(command, timeout_s=60)).output.strip()


async def get(sandbox, *arguments):
    await sandbox.write("get.py", CLIENT.encode())
    return await output(sandbox, f"python3 /work/get.py {' '.join(arguments)}")


def logged(folder, episode="e"):
    lines = [json.loads(line) for path in sorted((folder / episode).glob("*.jsonl")) for line in path.open()]
    lines.sort(key=lambda line: line["at"])  # each is written at its end
    return [(line["method"], line["host"], line["port"], line["verdict"], line["why"]) for line in lines], lines


async def test_what_is_allowed_is_reached_what_is_blocked_is_not_and_each_request_is_logged(make, tmp_path, internet):
    sandbox = await make().create("e", 1, IMAGE, limits())
    assert await get(sandbox, "http://allowed.test/path", "body") == "allowed.test /path body"
    assert await get(sandbox, "https://allowed.test/tls") == "allowed.test /tls"
    assert await get(sandbox, "http://allowed.test:8080/") == "allowed.test:8080 /"
    assert await get(sandbox, "http://allowed.test:81/") == "allowed.test:81 is not allowed"
    assert await get(sandbox, "http://blocked.test/") == "blocked.test is blocked"
    assert "403" in await get(sandbox, "https://sub.blocked.test/")
    assert await get(sandbox, "http://elsewhere.example/") == "elsewhere.example:80 is not allowed"
    assert await get(sandbox, f"http://{internet.dns}/") == f"{internet.dns}:80 is not allowed"
    await sandbox.close()
    short, lines = logged(tmp_path)
    assert short == [
        ("POST", "allowed.test", 80, "allowed", ""),
        ("CONNECT", "allowed.test", 443, "allowed", ""),
        ("GET", "allowed.test", 8080, "allowed", ""),
        ("GET", "allowed.test", 81, "refused", "allowed.test:81 is not allowed"),
        ("GET", "blocked.test", 80, "refused", "blocked.test is blocked"),
        ("CONNECT", "sub.blocked.test", 443, "refused", "sub.blocked.test is blocked"),
        ("GET", "elsewhere.example", 80, "refused", "elsewhere.example:80 is not allowed"),
        ("GET", internet.dns, 80, "refused", f"{internet.dns}:80 is not allowed"),
    ]
    assert {line["episode"] for line in lines} == {"e"}
    assert lines[0]["address"] == internet.dns and min(lines[0]["received"], lines[0]["sent"]) > len("body")
    assert all(line["sent"] == line["received"] == 0 for line in lines[3:])


async def test_no_name_leads_where_nobody_may_go(make, tmp_path):
    sandbox = await make().create("e", 1, IMAGE, limits())
    assert await get(sandbox, "http://loop.test/") == "127.0.0.1 is never reachable"
    assert await get(sandbox, "http://metadata.test/") == "169.254.169.254 is never reachable"
    assert await get(sandbox, "http://private.test/") == "10.255.254.253 is not public"
    assert await get(sandbox, "http://mixed.test/") == "127.0.0.1 is never reachable"
    # Its first answer is checked and used, its second is never asked for by whoever connects.
    assert await get(sandbox, "http://rebind.test/") == "rebind.test /"
    assert await get(sandbox, "http://rebind.test/") == "127.0.0.1 is never reachable"
    assert "Name or service not known" in await get(sandbox, "http://nowhere.test/")
    await sandbox.close()
    assert [line[3] for line in logged(tmp_path)[0]] == [*["refused"] * 4, "allowed", "refused", "failed"]


async def test_there_is_no_way_around_the_proxy(make, internet, tmp_path):
    sandbox = await make().create("e", 1, IMAGE, limits())
    assert await output(sandbox, "ls /sys/class/net; ls /run/klong /opt/klong 2>&1 | grep -c 'No such'") == "lo\n2"
    direct = f"timeout 5 bash -c '< /dev/tcp/{internet.dns}/80'"
    assert "Network is unreachable" in await output(sandbox, direct)
    assert await output(sandbox, "getent hosts allowed.test; echo $?") == "2"
    await sandbox.write("fronting.py", FRONTING.encode())
    assert await output(sandbox, "python3 fronting.py allowed.test blocked.test") == "200\ncut"
    assert await output(sandbox, "python3 fronting.py allowed.test allowed.test") == "200\nin"
    assert await output(sandbox, "python3 fronting.py blocked.test allowed.test") == "403\ncut"
    await sandbox.close()
    assert [line[3] for line in logged(tmp_path)[0]] == ["refused", "allowed", "refused"]
    assert logged(tmp_path)[0][0][4] == "TLS names blocked.test instead"


async def test_a_blocked_range_wins_over_an_allowed_name(make, internet):
    blocked = Network(allow=("*",), block=(internet.range,))
    sandbox = await make().create("e", 1, IMAGE, limits(blocked))
    assert await get(sandbox, "http://allowed.test/") == f"{internet.dns} is blocked"


async def test_the_network_survives_a_restart_an_adoption_and_a_snapshot(make, tmp_path):
    factory = make()
    sandbox = await factory.create("e", 1, IMAGE, limits())
    assert await get(sandbox, "http://allowed.test/1") == "allowed.test /1"
    assert (await sandbox.exec("kill -9 -1", timeout_s=20)).exit_code is None
    client = docker.APIClient()
    client.kill(sandbox.name)
    client.kill(sandbox.name.replace("klong", "klong-proxy", 1))
    assert await get(sandbox, "http://allowed.test/2") == "allowed.test /2"
    client.close()
    adopted = await make().adopt("e")
    await sandbox.close()  # no longer its owner: it takes nothing away
    assert await get(adopted, "http://allowed.test/3") == "allowed.test /3"
    restored = await factory.create("e", 2, await adopted.snapshot("s"), limits())
    assert await get(restored, "http://allowed.test/4") == "allowed.test /4"
    await adopted.close()
    await restored.close()
    assert len(logged(tmp_path)[0]) == 4, "no request is lost with a proxy that is restarted"


async def test_a_proxy_or_a_way_out_whose_process_dies_comes_back(make, client):
    sandbox = await make().create("e", 1, IMAGE, limits())
    for name in ("klong-proxy", "klong-exit"):
        [found] = client.containers.list(filters={"label": f"klong.egress={sandbox.name.split('.')[1]}", "name": name})
        assert found.exec_run(["pkill", "-9", "python3"]).exit_code == 0
    async with asyncio.timeout(20):
        while await get(sandbox, "http://allowed.test/") != "allowed.test /":
            await asyncio.sleep(0.1)


async def test_one_made_ahead_logs_for_the_episode_that_gets_it(make, tmp_path, client):
    factory = make(warm=1)
    await (await factory.create("first", 1, IMAGE, limits())).close()
    pool, kind = factory.hosts[0].pool, host.Kind(IMAGE, limits())
    async with asyncio.timeout(60):
        while not pool.ready(kind):
            await asyncio.sleep(0.05)
    sandbox = await factory.create("e", 1, IMAGE, limits())
    assert await get(sandbox, "http://allowed.test/") == "allowed.test /"
    await factory.close()
    assert await make().reap(keep=set()) == ["e"]
    assert len(logged(tmp_path)[0]) == 1
    assert leftovers(client, factory.run) == []


async def test_the_reaper_keeps_the_way_out_of_what_it_keeps(make, client, tmp_path):
    factory = make()
    kept, other = [await factory.create(episode, 1, IMAGE, limits()) for episode in ("kept", "other")]
    client.containers.get(other.name).remove(force=True)
    assert await factory.reap(keep={"kept"}) == []
    assert leftovers(client, factory.run) == ["klong", "klong-exit", "klong-exit", "klong-proxy"]
    assert await get(kept, "http://allowed.test/") == "allowed.test /"


async def test_a_flood_is_bounded_and_what_was_open_at_the_end_is_logged(make, tmp_path):
    sandbox = await make().create("e", 1, IMAGE, limits())
    assert await get(sandbox, "http://allowed.test/big/200000000") == "x" * 200
    hold = "(exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT allowed.test:443 HTTP/1.1\\r\\n\\r\\n' >&3; sleep 60) &"
    await sandbox.exec(f"for i in $(seq 20); do {hold} done; sleep 2", timeout_s=20)
    assert await get(sandbox, "http://allowed.test/after") == "allowed.test /after"
    await sandbox.close()
    short, _ = logged(tmp_path)
    assert len(short) == 22 and sum(line[:3] == ("CONNECT", "allowed.test", 443) for line in short) == 20


async def test_a_network_that_cannot_be_had_says_why(make, client):
    with pytest.raises(TaskFailure, match="'a b' is no host"):
        await make().create("e", 1, IMAGE, limits(Network(allow=("a b",))))
    for settings, says in (({"image": "klong-none"}, "klong-none.*make image-net"), ({"via": "nowhere"}, "nowhere")):
        factory = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", egress=settings)
        with pytest.raises(InfrastructureFailure, match=says):
            await factory.create("e", 1, IMAGE, limits())
        await factory.reap(keep=set())
        await factory.close()
        assert leftovers(client, factory.run) == []


async def test_many_at_once_share_one_way_out(make, client):
    factories = [make(), make()]
    made = await asyncio.gather(*(factories[n % 2].create(f"e{n}", 1, IMAGE, limits()) for n in range(6)))
    assert await asyncio.gather(*(get(each, "http://allowed.test/") for each in made)) == ["allowed.test /"] * 6
    assert leftovers(client, factories[0].run).count("klong-exit") == 2, "a container and its volume"
