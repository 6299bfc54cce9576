"""Sandboxes on two Docker daemons of the test's own, one of them reached over TLS."""

import asyncio
import socket
import subprocess
import tempfile
from pathlib import Path

import docker
import pytest

from klong_rl.types import Limits
from sandboxes.base import HostAway, InfrastructureFailure
from sandboxes.container import parse_name
from sandboxes.docker import DockerSandboxes, preflight
from tests.private_dockerd import PrivateDockerd

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # two daemons of its own

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=32)


def make_certificates(folder):
    """ca.pem, cert.pem and key.pem, for the daemon at 127.0.0.1 and for its clients alike."""
    ask = "openssl req -newkey rsa:2048 -nodes -subj /CN={} -keyout {} -out {}"
    sign = "openssl x509 -req -days 1 -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -extfile ext"
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    for command in (ask.format("ca", "ca.key", "ca.pem -x509"), ask.format("klong", "key.pem", "cert.csr"), sign):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def daemons():
    """(plain, TLS): the second listens on `url` as well."""
    with tempfile.TemporaryDirectory(prefix="klong-") as short, socket.socket() as probe:
        folder = Path(short)
        make_certificates(folder)
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        pem = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
        tls = ("--tlsverify", f"--tlscacert={pem['ca']}", f"--tlscert={pem['cert']}", f"--tlskey={pem['key']}")
        made = [PrivateDockerd(folder / "a"), PrivateDockerd(folder / "b", flags=(f"--host={url}", *tls))]
        made[1].url, made[1].certificates = url, folder
        try:
            for daemon in made:
                daemon.start()
                daemon.load_image(IMAGE)
            yield made
        finally:
            for daemon in made:
                daemon.stop()


@pytest.fixture
async def make(daemons, monkeypatch):
    """Factories of one run over both hosts."""
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(daemons[1].certificates))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which requests prefers to the daemon's own authority
        monkeypatch.delenv(name, raising=False)
    made = []

    def factory(**settings):
        made.append(DockerSandboxes("test", hosts=[daemons[0].host, daemons[1].url], **settings))
        return made[-1]

    yield factory
    for each in made:
        await each.close()
    reaper = DockerSandboxes("test", hosts=[daemons[0].host, daemons[1].url])
    await reaper.reap(keep=set())
    await reaper.close()


def episodes(daemon):
    client = docker.APIClient(daemon.host)
    names = [each["Names"][0] for each in client.containers(all=True)]
    client.close()
    return sorted(parse_name(name).episode for name in names)


async def output(sandbox, command):
    return (await sandbox.exec(command, timeout_s=20)).output


async def test_sandboxes_are_spread_and_work_on_either_host(make, daemons):
    factory = make(per_host=2)
    made = await asyncio.gather(*(factory.create(f"e{n}", 1, IMAGE, LIMITS) for n in range(4)))
    assert [len(episodes(daemon)) for daemon in daemons] == [2, 2]
    big = bytes(range(256)) * 4000
    for sandbox in made:
        await sandbox.write("big", big)
        assert await sandbox.read("big", len(big)) == big
        assert (await sandbox.exec("seq 100000", timeout_s=20, output_limit=10**6)).output.count("\n") == 100000
        assert (await sandbox.exec("sleep 20", timeout_s=0.2)).timed_out
    assert [await output(await make().adopt(f"e{n}"), "cat big | wc -c") for n in range(4)] == [f"{len(big)}\n"] * 4
    assert await make().reap(keep={"e0"}) == ["e1", "e2", "e3"]
    assert sorted(episodes(daemons[0]) + episodes(daemons[1])) == ["e0"]


async def test_each_host_keeps_a_pool_of_its_own_and_those_in_it_are_no_load(make, daemons):
    factory = make(warm=2, per_host=1)
    await asyncio.gather(*(factory.create(f"e{n}", 1, IMAGE, LIMITS) for n in range(2)))
    async with asyncio.timeout(30):
        while [len(episodes(daemon)) for daemon in daemons] != [3, 3]:
            await asyncio.sleep(0.1)
    assert await factory.reap(keep=set()) == ["e0", "e1"]
    await asyncio.gather(*(factory.create(f"f{n}", 1, IMAGE, LIMITS) for n in range(2)))
    await factory.close()
    assert sorted([episodes(daemons[0]), episodes(daemons[1])]) == [["f0"], ["f1"]]


async def test_a_snapshot_is_restored_where_it_is_or_copied_where_that_host_is_full(make, daemons):
    factory = make(per_host=2)
    sandbox = await factory.create("e0", 1, IMAGE, LIMITS)
    await output(sandbox, "echo text > file; export A=kept")
    kept = await sandbox.snapshot("s")
    here = next(daemon for daemon in daemons if episodes(daemon))
    there = next(daemon for daemon in daemons if daemon is not here)
    first = await factory.create("first", 1, kept, LIMITS)
    assert (episodes(here), episodes(there)) == (["e0", "first"], [])
    second = await factory.create("second", 1, kept, LIMITS)
    assert episodes(there) == ["second"]
    assert [await output(each, "cat file; echo $A") for each in (first, second)] == ["text\nkept\n"] * 2
    await factory.reap(keep={"none"})
    assert [docker.APIClient(daemon.host).images(filters={"label": "klong.run=test"}) for daemon in daemons] == [[], []]
    with pytest.raises(InfrastructureFailure, match="none of .* has snapshot"):
        await factory.create("third", 1, kept, LIMITS)


async def test_a_host_that_goes_away_is_passed_over_and_what_it_holds_is_missed_not_replaced(
    make, daemons, monkeypatch
):
    monkeypatch.setattr("sandboxes.host.CLOSE_S", 2.0)
    factory = make()
    made = await asyncio.gather(*(factory.create(f"e{n}", 1, IMAGE, LIMITS) for n in range(2)))
    lost, found = (episodes(daemon)[0] for daemon in daemons)
    daemons[0].kill()
    try:
        await factory.create("e2", 1, IMAGE, LIMITS)
        assert episodes(daemons[1]) == sorted([found, "e2"])
        async with asyncio.timeout(1.5):
            adopted = await factory.adopt(found)
        with pytest.raises(HostAway, match=str(daemons[0].host)):
            await factory.adopt(lost)
        assert await factory.reap(keep={found}) == ["e2"]
        with pytest.raises(HostAway):
            await preflight(IMAGE, [daemons[1].url, daemons[0].host])
    finally:
        daemons[0].start()
    assert await output(adopted, "echo here") == "here\n"
    assert await output(await factory.adopt(lost), "echo back") == "back\n"
    assert {sandbox.episode for sandbox in made} == {lost, found}


async def test_a_daemon_that_asks_for_a_certificate_refuses_who_has_none(daemons):
    with pytest.raises(InfrastructureFailure):
        await preflight(IMAGE, [daemons[1].url])
