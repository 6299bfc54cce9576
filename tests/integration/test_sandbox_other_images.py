"""Sandboxes on real Docker of images that are not ours: with no bash, with a user of their own, of no use, absent."""

import uuid

import docker
import msgspec
import pytest

from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.types import Limits
from sandboxes.docker import DockerSandboxes, preflight

pytestmark = pytest.mark.integration

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)


@pytest.fixture
async def factory():
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}")
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture
def client():
    made = docker.DockerClient.from_env()
    yield made
    made.close()


async def run(sandbox, command, timeout_s=20.0):
    return await sandbox.exec(command, timeout_s=timeout_s)


def containers(client, factory):
    return client.containers.list(all=True, filters={"label": f"klong.run={factory.run}"})


async def test_a_missing_image_is_named_with_its_remedy(factory, client):
    await preflight(IMAGE)
    for attempt in (preflight("no-such-image"), factory.create("x", 1, "no-such-image", LIMITS)):
        with pytest.raises(InfrastructureFailure, match="no-such-image.*make image"):
            await attempt
    assert containers(client, factory) == []


async def test_an_image_that_cannot_work_is_the_tasks_failure_and_leaves_nothing(client):
    factory = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}")
    absent = msgspec.structs.replace(LIMITS, user="nobody", workdir="/absent/directory")
    with pytest.raises(TaskFailure, match="/absent/directory"):
        await factory.create("e", 1, IMAGE, absent)
    await factory.close()
    assert containers(client, factory) == []


@pytest.fixture
async def image_without_bash(client, factory):
    made = client.containers.run(IMAGE, ["rm", "/bin/bash"], user="root", network_mode="none", detach=True)
    made.wait()
    image = made.commit("klong-test-without-bash", factory.run)
    made.remove()
    yield image.id
    await factory.reap(keep=set())
    client.images.remove(image.id, force=True)


async def test_an_image_with_no_bash_has_the_same_commands_by_sh(factory, image_without_bash):
    sandbox = await factory.create("e", 1, image_without_bash, LIMITS)
    assert (await run(sandbox, 'echo "[$BASH_VERSION]"; cd /tmp; export A="it\'s\n\\`"')).output == "[]\n"
    for command, exit_code in (("exit 3", 3), ("exec false", 1), ("kill -9 $$", 137), ("echo 'unfinished", 2)):
        assert (await run(sandbox, command)).exit_code == exit_code
    assert (await run(sandbox, "true\nno-such-program")).output.startswith("sh: 2: ")
    await run(sandbox, "sleep 4700 & setsid sleep 4700 &")
    left = await run(sandbox, "trap '' TERM; setsid sleep 4701 & sleep 4701", timeout_s=0.5)
    assert left.timed_out
    count = "ps -eo args= | grep -cx 'sleep 470{}'; true"
    assert (await run(sandbox, f"{count.format(0)}; {count.format(1)}")).output == "2\n0\n"
    result = await sandbox.exec("cat; echo err >&2", timeout_s=10, stdin=b"\xff\0", apart=True)
    assert (result.stdout, result.stderr) == (b"\xff\0", b"err\n")
    assert (await run(sandbox, f": {'x' * 200_000}; echo whole")).output == "whole\n"
    assert (await run(sandbox, 'pwd; echo "$A"')).output == "/tmp\nit's\n`\n"
    await sandbox.halt()
    assert (await run(sandbox, "pwd; ps -eo args= | grep -c '^sleep 4700'")).output == "/work\n0\n"
    adopted = await factory.adopt("e")
    assert (await run(adopted, "echo here")).output == "here\n"


async def test_a_sandbox_of_the_images_own_user_and_directory_stays_that_in_other_hands_and_from_a_snapshot(
    factory, client
):
    """As tasks from elsewhere want it: root, who may change what belongs to others, where the image says."""
    made = client.containers.create(IMAGE)
    image = made.commit("klong-test-root", factory.run, changes=["USER root", "WORKDIR /srv"])
    made.remove()
    whole = msgspec.structs.replace(LIMITS, user="", workdir="", read_only=())
    where = "id -un; pwd; touch /etc/mine && chown 1000 /etc/mine && cat kept"
    try:
        first = await factory.create("e", 1, image.id, whole)
        assert (await first.exec("pwd; echo 7 > kept; export HERE=1; cd /", timeout_s=20)).output == "/srv\n"
        adopted = await factory.adopt("e")
        assert (await adopted.exec(f"cd /srv; {where}", timeout_s=20)).output == "root\n/srv\n7\n"
        await adopted.forget()
        assert (await adopted.exec("pwd; echo $HERE", timeout_s=20)).output == "/srv\n\n"
        restored = await factory.create("f", 1, await adopted.snapshot("s"), whole)
        assert (await restored.exec(where, timeout_s=20)).output == "root\n/srv\n7\n"
        raw = await restored.exec("grep CapEff /proc/self/status", timeout_s=20)
        assert int(raw.output.split()[1], 16) & (1 << 13 | 1 << 21 | 1 << 27) == 0, "no raw sockets, no devices"
    finally:
        await factory.reap(keep=set())
        client.images.remove(image.id, force=True)
