"""The buffer on every kind of Redis that `buffer.url` may name, and across their fail-overs."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from klong_rl.buffer import Buffer, BufferAddress, OutOfSequence, Unavailable
from klong_rl.buffer.connection import _scripts
from tests import redis_servers as servers
from tests.episodes import every_look, every_transition, segment, spec

pytestmark = pytest.mark.integration

# The rules that docs/buffer.md gives; a Cluster needs the last two.
ACL = "~klong:* -@all +@read +@write -@dangerous +evalsha +eval +script|load +info +time +ping +select"
ACL_OF_A_CLUSTER = f"{ACL} +cluster|slots +command"


async def use(url: str, run: str = "run") -> None:
    """A whole life on it, with every look in between."""
    async with await Buffer.connect(BufferAddress(url, run, deadline_s=servers.DEADLINE_S)) as buffer:
        for _, step in every_transition(buffer):
            await step()
            await every_look(buffer)
        assert (await buffer.counts()).windows == {"consumed": 2}


async def append_across(address: BufferAddress, fail: Callable[[], None]) -> tuple[int, int]:
    """Appends while and after `fail` is called; how many segments there are, and how many answered ones were lost.

    What is lost is written again, as its holder would, so whatever is there must be whole and in order.
    """
    async with await Buffer.connect(address) as buffer, await Buffer.connect(address) as onlooker:
        await buffer.admit(spec("g"))
        await buffer.claim("actor")
        await onlooker.segments("g-0")
        seq = lost = 0
        failed_at = None
        while failed_at is None or time.monotonic() < failed_at + 1.0:
            try:
                await buffer.append("g-0", 1, segment("g-0", seq))
                seq += 1
            except OutOfSequence as gap:
                lost += seq - gap.expected
                seq = gap.expected
            if seq == 300 and failed_at is None:
                fail()
                await buffer.append("g-0", 1, segment("g-0", seq))
                failed_at, seq = time.monotonic(), seq + 1
        found = await buffer.segments("g-0")
        assert [s.seq for s in found] == list(range(seq))
        assert len(await onlooker.segments("g-0")) == seq  # one that only reads finds the new server too
        return seq, lost


async def test_an_acl_user_with_the_rights_in_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "buffer.md").read_text()
    assert f"{ACL}\n" in page and f"{ACL_OF_A_CLUSTER}\n" in page
    with servers.server(tmp_path) as server:
        server.ask("ACL", "SETUSER", "klong", "reset", "on", ">p@ss/w:rd", *ACL.split())
        url = f"redis://klong:p%40ss%2Fw%3Ard@127.0.0.1:{server.port}"
        await use(url)
        await use(f"{url}/3", "other")
        user = redis.Redis(port=server.port, username="klong", password="p@ss/w:rd")
        for forbidden in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("GET", "elsewhere"), ("SHUTDOWN",)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*forbidden)


@pytest.mark.parametrize("right", ["evalsha", "eval", "script|load", "info"])
async def test_a_right_that_lacks_is_named_at_once(tmp_path: Path, right: str) -> None:
    with servers.server(tmp_path) as server:
        server.ask("ACL", "SETUSER", "klong", "reset", "on", ">secret", *ACL.split(), f"-{right}")
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"forbids it .*{right.replace('|', '.')}.*docs/buffer.md") as found:
            address = BufferAddress(f"redis://klong:secret@127.0.0.1:{server.port}", "run")
            async with await Buffer.connect(address) as buffer:
                server.ask("SCRIPT", "FLUSH")  # as a restart does
                await buffer.admit(spec("g"))
        assert time.monotonic() - began < 5 and "secret" not in str(found.value)


async def test_a_replica_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    with servers.server(tmp_path, "--min-replicas-to-write", 1) as master:
        address = BufferAddress(f"redis://127.0.0.1:{master.port}", "run", deadline_s=servers.DEADLINE_S)
        async with await Buffer.connect(address) as buffer:
            waiting = asyncio.create_task(buffer.admit(spec("g")))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            with servers.server(tmp_path, "--replicaof", "127.0.0.1", master.port):
                assert await waiting


async def test_without_an_append_only_file_the_log_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with servers.server(tmp_path, "--appendonly", "no") as server, caplog.at_level(logging.WARNING):
        await (await Buffer.connect(BufferAddress(f"redis://127.0.0.1:{server.port}", "run"))).close()
    assert "keeps no append-only file" in caplog.text and "appendonly yes" in caplog.text


async def test_every_transition_acts_once_when_its_reply_is_lost(tmp_path: Path) -> None:
    with servers.server(tmp_path) as server:
        async with servers.CuttingProxy(server.port) as proxy:
            through = BufferAddress(f"redis://127.0.0.1:{proxy.port}", "run-cut", deadline_s=servers.DEADLINE_S)
            direct = BufferAddress(f"redis://127.0.0.1:{server.port}", "run-whole")
            async with await Buffer.connect(through) as cut, await Buffer.connect(direct) as whole:
                steps = every_transition(cut)
                assert {name for name, _ in steps} == _scripts().keys()
                for n, ((name, step), (_, reference)) in enumerate(zip(steps, every_transition(whole), strict=True), 1):
                    proxy.armed = True
                    await step()
                    assert proxy.cuts == n, f"the reply of {name} wasn't lost"
                    await reference()
                    assert await every_look(cut) == await every_look(whole), f"after {name}"


async def test_a_restarted_server_learns_the_scripts_again(tmp_path: Path) -> None:
    with servers.server(tmp_path) as server:
        async with await Buffer.connect(BufferAddress(f"redis://127.0.0.1:{server.port}", "run")) as buffer:
            await buffer.admit(spec("g"))
            server.kill()
            with servers.server(tmp_path, port=server.port):
                assert (await buffer.claim("actor")).epoch == 1


def certificates(folder: Path) -> dict[str, Path]:
    """An authority, and what it signed for 127.0.0.1."""

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(hours=1),
        )
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(here, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    files["ca"].write_bytes(certificate("authority", authority, "authority", authority))
    files["cert"].write_bytes(certificate("redis", own, "authority", authority))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files["key"].write_bytes(own.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files


async def test_over_tls_an_authority_must_vouch_for_the_server(tmp_path: Path) -> None:
    files, (port,) = certificates(tmp_path), servers.free_ports(1)
    tls = ("--port", 0, "--tls-port", port, "--tls-auth-clients", "no", "--requirepass", "secret")
    pems = ("--tls-cert-file", files["cert"], "--tls-key-file", files["key"], "--tls-ca-cert-file", files["ca"])
    here = {"ssl": True, "ssl_ca_certs": str(files["ca"]), "password": "secret"}
    with servers.server(tmp_path, *tls, *pems, port=port, **here):
        await use(f"rediss://:secret@127.0.0.1:{port}?ssl_ca_certs={files['ca']}")
        began = time.monotonic()
        with pytest.raises(Unavailable, match="can't be trusted .*ssl_ca_certs=") as found:
            await Buffer.connect(BufferAddress(f"rediss://:secret@127.0.0.1:{port}", "run"))
        assert time.monotonic() - began < 5 and "secret" not in str(found.value)


async def test_sentinels_name_the_master_and_a_fail_over_is_survived(tmp_path: Path) -> None:
    with servers.pair(tmp_path) as (master, replica):
        for one in (master, replica):
            one.ask("ACL", "SETUSER", "klong", "on", ">secret", *ACL.split())
        with servers.sentinels(tmp_path, master) as ports:
            hosts = ",".join(f"127.0.0.1:{port}" for port in (servers.free_ports(1)[0], *ports))  # the first is dead
            url = f"redis+sentinel://klong:secret@{hosts}/klong"
            address = BufferAddress(url, "run", deadline_s=servers.DEADLINE_S)
            await use(url, "before")
            n, lost = await append_across(address, master.kill)
            assert n > 300
            assert lost < 50  # answered, and not yet at the replica: a moment of 300 quick ones, never more
            assert replica.ask("ROLE")[0] == "master"
            assert replica.ask("LLEN", "klong:{run}:sizes:g-0") == n


async def test_a_log_in_of_the_sentinels_own(tmp_path: Path) -> None:
    with servers.pair(tmp_path) as (master, _):
        with servers.sentinels(tmp_path, master) as ports:
            for port in ports:
                redis.Redis(port=port).execute_command("ACL", "SETUSER", "default", "resetpass", ">watch")
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            await use(f"redis+sentinel://{hosts}/klong?sentinel_password=watch")
            with pytest.raises(Unavailable, match="connect: .* refuses the log-in"):
                await Buffer.connect(BufferAddress(f"redis+sentinel://{hosts}/klong?sentinel_password=no", "run"))


async def test_a_cluster_and_the_fail_over_of_the_node_that_holds_the_run(tmp_path: Path) -> None:
    with servers.cluster(tmp_path, 3, 3) as nodes:
        for node in nodes:
            node.ask("ACL", "SETUSER", "klong", "on", ">secret", *ACL_OF_A_CLUSTER.split())
        holder = next(n for n in nodes[:3] if servers.holds(n, "klong:{run}:"))
        seeds = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2])
        address = BufferAddress(f"redis+cluster://klong:secret@{seeds}", "run", deadline_s=servers.DEADLINE_S)
        for run in ("a", "b", "c", "d"):
            await use(address.url, run)
        n, lost = await append_across(address, holder.kill)
        assert n > 300 and lost < 50
        async with await Buffer.connect(address) as buffer:  # which looks at the new holder's memory and role
            assert await buffer.claim("actor") is None
        with pytest.raises(Unavailable, match="node of a Cluster .*redis.cluster://"):
            other = next(n for n in nodes[:3] if n is not holder)
            await use(f"redis://klong:secret@127.0.0.1:{other.port}")
