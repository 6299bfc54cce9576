"""Images from a registry, a real one on this machine: pulled where they are missing, and who is to blame if not."""

import shutil
import socket
import subprocess
import time
import urllib.request
import uuid

import docker
import pytest

from klong_rl.types import Limits
from sandboxes.base import InfrastructureFailure, TaskFailure
from sandboxes.docker import DockerSandboxes

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("docker-registry"), reason="docker-registry is missing: make test-slow gets it"
    ),
]

LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)
UP_S = 30.0
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture
def registry(tmp_path):
    """host:port of a registry that has the image task:1, which this machine's Docker doesn't have under that name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "config.yml").write_text(CONFIG.format(folder=tmp_path / "data", port=port))
    process = subprocess.Popen(
        ["docker-registry", "serve", tmp_path / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + UP_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < until, "docker-registry did not come up"
            time.sleep(0.1)
    name, client = f"127.0.0.1:{port}/task", docker.APIClient()
    try:
        client.tag("klong-sandbox", name, "1")
        client.push(name, "1")
        client.remove_image(f"{name}:1")
        yield f"127.0.0.1:{port}", process
        if client.images(name):
            client.remove_image(f"{name}:1")
    finally:
        client.close()
        process.kill()
        process.wait()


@pytest.fixture
async def factory():
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}")
    yield made
    await made.reap(keep=set())
    await made.close()


async def test_an_image_that_is_missing_is_pulled(factory, registry):
    where, _ = registry
    sandbox = await factory.create("e", 1, f"{where}/task:1", LIMITS)
    assert (await sandbox.exec("echo here", timeout_s=20)).output == "here\n"


async def test_a_tag_that_no_registry_has_breaks_the_task(factory, registry):
    where, _ = registry
    with pytest.raises(TaskFailure, match=f"the registry of image '{where}/task:2' has no such tag"):
        await factory.create("e", 1, f"{where}/task:2", LIMITS)


async def test_a_registry_that_is_away_is_no_fault_of_the_task(factory, registry):
    where, process = registry
    process.kill()
    process.wait()
    with pytest.raises(InfrastructureFailure, match="Pulling it: .*refused"):
        await factory.create("e", 1, f"{where}/task:1", LIMITS)
