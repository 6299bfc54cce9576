"""The snapshots of a run on one host stay within a quota, and those that an unfinished episode needs stay."""

import uuid

import docker
import pytest

from klong_rl.types import Limits
from sandboxes import quota
from sandboxes.base import InfrastructureFailure
from sandboxes.docker import DockerSandboxes

pytestmark = pytest.mark.integration

LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)
MB = 10**6


@pytest.fixture
async def factory():
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", snapshot_bytes=5 * MB)
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(quota, "SETTLES_S", -10.0)


def images_of(factory):
    client = docker.APIClient()
    try:
        return {image["Id"] for image in client.images(filters={"label": f"klong.run={factory.run}"})}
    finally:
        client.close()


async def snapshots(factory, episode, n):
    """A sandbox, and its snapshots: each of 2 MB more than what it began with."""
    sandbox = await factory.create(episode, 1, "klong-sandbox", LIMITS)
    await sandbox.exec("head -c 2000000 /dev/urandom > file", timeout_s=20)
    return sandbox, [await sandbox.snapshot(str(index)) for index in range(n)]


def saying(*needed):
    async def answer():
        return set(needed)

    return answer


async def never():
    raise AssertionError("asked although there is room")


async def test_within_the_quota_nobody_is_asked_and_nothing_removed(factory):
    sandbox, kept = await snapshots(factory, "e", 2)
    await factory.make_room(sandbox, never)
    assert images_of(factory) == set(kept)


async def test_over_it_what_nobody_needs_goes_oldest_first_until_there_is_room(factory):
    sandbox, (needed, older, newer) = await snapshots(factory, "e", 3)
    await factory.make_room(sandbox, saying(needed))
    assert len(left := images_of(factory)) == 2 and needed in left
    assert left < {needed, older, newer}


async def test_what_is_needed_stays_and_the_episode_goes_on_without_a_new_one(factory):
    sandbox, kept = await snapshots(factory, "e", 3)
    with pytest.raises(InfrastructureFailure, match=r"take 0.006.* GB of sandbox.snapshot_gb=0.005.*raise it"):
        await factory.make_room(sandbox, saying(*kept))
    assert images_of(factory) == set(kept)


async def test_what_was_just_made_may_be_needed_though_nobody_says_so_yet(factory, monkeypatch):
    sandbox, kept = await snapshots(factory, "e", 3)
    monkeypatch.setattr(quota, "SETTLES_S", 600.0)
    with pytest.raises(InfrastructureFailure):
        await factory.make_room(sandbox, saying())
    assert images_of(factory) == set(kept)


async def test_a_snapshot_of_a_restored_sandbox_counts_for_what_it_adds(factory):
    first, [image] = await snapshots(factory, "e", 1)
    restored = await factory.create("e", 2, image, LIMITS)
    await restored.exec("echo text > more", timeout_s=20)
    child = await restored.snapshot("child")
    _, found = await factory.hosts[0]._kept()
    own = {each.id: each.own_bytes for each in found}
    assert own[image] > 2 * MB and own[child] < MB / 2


async def test_another_runs_snapshots_are_neither_counted_nor_removed(factory):
    other = DockerSandboxes(f"{factory.run}-other", snapshot_bytes=MB)
    try:
        _, theirs = await snapshots(other, "e", 1)
        sandbox, _ = await snapshots(factory, "e", 2)
        await factory.make_room(sandbox, never)
        assert images_of(other) == set(theirs)
    finally:
        await other.reap(keep=set())
        await other.close()
