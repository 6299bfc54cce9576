"""A Docker host behind ssh: a real sshd of the test's own, on this machine, in front of its Docker daemon."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klong_rl.types import Limits
from sandboxes.base import InfrastructureFailure
from sandboxes.docker import DockerSandboxes, preflight

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no sshd: install openssh-server"),
]

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=32)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The URL of this machine's Docker daemon through ssh."""
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, wants to be
    settings = (
        f"HostKey={tmp_path / 'host'}", f"AuthorizedKeysFile={tmp_path / 'authorized'}", "StrictModes=no",
        "PermitRootLogin=prohibit-password", "UsePAM=no", "PidFile=none", f"ListenAddress=127.0.0.1:{port}",
    )  # fmt: skip
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", "/dev/null", *(f"-o{setting}" for setting in settings)])
    # The user's own settings, as they would stand in ~/.ssh/config.
    ours = f"-i {tmp_path / 'user'} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none {ours} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    until = time.monotonic() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < until, "sshd did not listen within 10 s"
        time.sleep(0.02)
    try:
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def tunnels(port: str) -> list[int]:
    """The processes of tunnels to that port."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if b"-L" in words and port.encode() in words:
            found.append(int(process.name))
    return found


async def test_a_sandbox_behind_ssh_outlives_the_tunnel_to_it(far):
    factory = DockerSandboxes("test-ssh", hosts=[far])
    try:
        await preflight(IMAGE, [far])
        sandbox = await factory.create("e0", 1, IMAGE, LIMITS)
        assert (await sandbox.exec("cd /tmp; echo here", timeout_s=30)).output == "here\n"
        (tunnel,) = tunnels(far.rpartition(":")[2])
        os.kill(tunnel, signal.SIGKILL)
        first = await sandbox.exec("pwd", timeout_s=30)
        assert first.interrupted or first.output == "/tmp\n"  # sent before or after the loss was seen
        assert (await sandbox.exec("pwd", timeout_s=30)).output == "/tmp\n"
        assert tunnels(far.rpartition(":")[2]) != [tunnel]
    finally:
        await factory.reap(set())
        await factory.close()
    assert tunnels(far.rpartition(":")[2]) == []


async def test_a_host_that_cant_be_reached_is_told_in_ssh_s_own_words(far):
    nobody = far.replace(far.rpartition(":")[2], "1")
    with pytest.raises(InfrastructureFailure, match="ssh -T .* cat`: .*Connection refused"):
        await preflight(IMAGE, [nobody])


def test_a_tunnel_ends_with_its_owner_however_that_ends(far):
    code = (
        "import sys, time; from sandboxes.tunnel import Tunnel; tunnel = Tunnel(sys.argv[1]); tunnel.open(); "
        "print('open', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, far], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "open\n"
    port = far.rpartition(":")[2]
    assert len(tunnels(port)) == 1
    owner.kill()
    owner.wait()
    until = time.monotonic() + 20
    while tunnels(port):
        assert time.monotonic() < until, "the tunnel outlived its owner by 20 s"
        time.sleep(0.1)
