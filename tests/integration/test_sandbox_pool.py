"""Sandboxes made ahead, on the real daemon: what an episode gets, and that nothing is left of an owner that died."""

import asyncio
import subprocess
import sys
import uuid

import docker
import pytest

from klong_rl.types import Limits
from sandboxes import container
from sandboxes.docker import DockerSandboxes
from sandboxes.host import Kind

pytestmark = pytest.mark.integration

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)
KIND = Kind(IMAGE, LIMITS)
SIZE = 2


@pytest.fixture
def client():
    made = docker.APIClient(version="auto")
    yield made
    made.close()


@pytest.fixture
async def factory():
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", warm=SIZE)
    yield made
    await made.close()
    reaper = DockerSandboxes(made.run)
    await reaper.reap(keep=set())
    await reaper.close()


def listed(client, factory, episode=None):
    """Ids by name, of the run's containers or of those of one episode ("" for none)."""
    found = client.containers(all=True, filters={"label": f"klong.run={factory.run}"})
    names = {each["Names"][0].removeprefix("/"): each["Id"] for each in found}
    return {n: i for n, i in names.items() if episode is None or container.parse_name(n).episode == episode}


async def filled(factory, n=SIZE):
    async with asyncio.timeout(30):
        while factory.hosts[0].pool.ready(KIND) < n:
            await asyncio.sleep(0.02)


@pytest.fixture
async def warm(factory):
    """The factory with a full pool; episode "first" has a sandbox."""
    await factory.create("first", 1, IMAGE, LIMITS)
    await filled(factory)
    return factory


async def output(sandbox, command):
    return (await sandbox.exec(command, timeout_s=10)).output


async def test_an_episode_gets_one_that_was_made_ahead_and_it_is_its_own_in_every_way(warm, client):
    ahead = set(listed(client, warm, "").values())
    sandbox = await warm.create("an/e", 3, IMAGE, LIMITS)
    assert listed(client, warm, "an/e") == {container.container_name(warm.run, "an/e", 3): sandbox._id}
    assert sandbox._id in ahead and sandbox.episode == "an/e"
    assert await output(sandbox, "pwd; ls; id -un; export A=kept; echo text > file") == "/work\nagent\n"
    limits = client.inspect_container(sandbox.name)["HostConfig"]
    assert (limits["Memory"], limits["PidsLimit"], limits["NetworkMode"]) == (64 << 20, 32, "none")
    image = await sandbox.snapshot("s")
    labels = client.inspect_image(image)["Config"]["Labels"]
    assert (labels["klong.run"], labels["klong.episode"], labels["klong.epoch"]) == (warm.run, "an/e", "3")
    adopted = await warm.adopt("an/e")
    assert await output(adopted, "cat file; echo $A") == "text\nkept\n"
    restored = await warm.create("other", 1, image, LIMITS)
    assert await output(restored, "cat file; echo $A") == "text\nkept\n"
    assert await warm.reap(keep={"other", "first"}) == ["an/e"]
    assert set(listed(client, warm)) == {container.container_name(warm.run, e, 1) for e in ("first", "other")}


async def test_other_limits_are_another_kind(warm, client):
    ahead = set(listed(client, warm, "").values())
    sandbox = await warm.create("e", 1, IMAGE, Limits(memory_mb=96))
    assert sandbox._id not in ahead
    assert client.inspect_container(sandbox.name)["HostConfig"]["Memory"] == 96 << 20


async def test_the_pool_is_full_again_after_more_was_asked_for_than_it_held(warm, client):
    made = await asyncio.gather(*(warm.create(f"e{i}", 1, IMAGE, LIMITS) for i in range(2 * SIZE + 1)))
    assert len({sandbox._id for sandbox in made}) == 2 * SIZE + 1
    assert await asyncio.gather(*(output(sandbox, "echo $$ > mine; ls") for sandbox in made)) == ["mine\n"] * len(made)
    await filled(warm)
    assert len(listed(client, warm, "")) == SIZE


async def test_closing_removes_what_was_made_ahead_and_nothing_else(warm, client):
    await warm.create("e", 1, IMAGE, LIMITS)  # so that others are in the making
    await warm.close()
    assert set(listed(client, warm)) == {container.container_name(warm.run, e, 1) for e in ("first", "e")}


async def test_one_that_was_removed_or_stopped_under_the_pool_is_passed_over(warm, client):
    gone, stopped = listed(client, warm, "").values()
    client.remove_container(gone, force=True)
    client.kill(stopped)
    sandbox = await warm.create("e", 1, IMAGE, LIMITS)
    assert sandbox._id not in (gone, stopped)
    assert await output(sandbox, "echo here") == "here\n"
    await filled(warm)
    assert len(listed(client, warm, "")) == SIZE


async def test_what_a_lost_creation_left_is_replaced(warm, client):
    await output(await warm.create("e", 1, IMAGE, LIMITS), "echo old > file")
    again = await warm.create("e", 1, IMAGE, LIMITS)
    assert await output(again, "ls") == ""
    assert list(listed(client, warm, "e").values()) == [again._id]


OWNER = """
import asyncio, sys
from klong_rl.types import Limits
from sandboxes.docker import DockerSandboxes
from sandboxes.host import Kind

async def main():
    factory, limits = DockerSandboxes(sys.argv[1], warm=2), Limits(memory_mb=64, pids=32, disk_mb=16)
    await factory.create("theirs", 1, "klong-sandbox", limits)
    while factory.hosts[0].pool.ready(Kind("klong-sandbox", limits)) < 2:
        await asyncio.sleep(0.02)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_what_a_killed_process_had_made_ahead_is_removed_by_another_and_its_episodes_stay(warm, client):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, warm.run], stdout=subprocess.PIPE, text=True)
    try:
        assert await asyncio.to_thread(owner.stdout.readline) == "ready\n"
        before = listed(client, warm)
        assert len(before) == 2 * (1 + SIZE)
        assert container.remove_unowned(client, warm.run, made_within_s=0) == []
    finally:
        owner.kill()
        owner.communicate()
    half_made = client.create_container(
        IMAGE, name=container.container_name(warm.run, "", container.MAKING, "x"), labels={"klong.run": warm.run}
    )
    removed = set()
    async with asyncio.timeout(10):  # the daemon sees that the connections are gone
        while len(removed) < SIZE:
            removed |= set(container.remove_unowned(client, warm.run, made_within_s=600))
            await asyncio.sleep(0.02)
    assert half_made["Id"] in listed(client, warm, "").values()
    removed |= set(container.remove_unowned(client, warm.run, made_within_s=-2))
    assert set(listed(client, warm)) == set(before) - removed
    assert len(listed(client, warm, "theirs")) == 1 and warm.hosts[0].pool.ready(KIND) == SIZE
    assert await output(await warm.create("e", 1, IMAGE, LIMITS), "echo here") == "here\n"
