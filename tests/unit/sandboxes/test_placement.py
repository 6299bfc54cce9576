"""Where a sandbox is made, among scripted hosts; real daemons are in tests/integration/test_sandbox_hosts.py."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes import placement
from sandboxes.base import HostAway, InfrastructureFailure
from sandboxes.host import Look
from sandboxes.placement import Placement, least_loaded

SNAPSHOT = "sha256:abc"


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9)), st.integers(0, 9))
def test_the_least_loaded_host_with_room_is_chosen(load, most):
    chosen = least_loaded(load, most)
    room = {host for host, count in load.items() if most == 0 or count < most}
    assert chosen in room if room else chosen is None
    assert all(load[chosen] <= load[host] for host in room)


class Host:
    def __init__(self, where, sandboxes=0, has_image=True):
        self.where, self.sandboxes, self.has_image = where, sandboxes, has_image
        self.is_away, self.asked, self.copies = False, 0, []

    async def look(self, image):
        self.asked += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise HostAway(f"{self.where} is away")
        return Look(self.sandboxes, self.has_image)

    async def copy_image(self, image, to):
        self.copies.append((image, to.where))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(placement, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(placement, "CREATE_S", 0.1)


async def chosen(a_placement, image="image"):
    async with a_placement.choose(image) as host:
        return host.where


async def test_one_host_without_a_bound_is_not_even_asked():
    host = Host("a")
    assert await chosen(Placement([host], 0)) == "a"
    assert host.asked == 0


async def test_creations_at_once_are_spread_before_any_is_seen():
    hosts = [Host("a", 1), Host("b"), Host("c")]
    a_placement, made = Placement(hosts, 0), []

    async def create():
        async with a_placement.choose("image") as host:
            made.append(host.where)
            await asyncio.sleep(0.05)

    await asyncio.gather(*(create() for _ in range(8)))
    assert sorted(made) == ["a"] * 2 + ["b"] * 3 + ["c"] * 3


async def test_a_host_that_is_away_is_passed_over_and_not_asked_again_at_once():
    away, there = Host("a"), Host("b", 5)
    away.is_away = True
    a_placement = Placement([away, there], 0)
    assert [await chosen(a_placement) for _ in range(3)] == ["b"] * 3
    assert (away.asked, there.asked) == (1, 3)


async def test_with_all_hosts_away_they_are_asked_until_one_is_back_or_time_is_up():
    hosts = [Host("a"), Host("b")]
    hosts[0].is_away = hosts[1].is_away = True
    with pytest.raises(HostAway, match="a, b did not answer"):
        await chosen(Placement(hosts, 0))
    coming = asyncio.create_task(chosen(Placement(hosts, 0)))
    await asyncio.sleep(0.03)
    hosts[1].is_away = False
    assert await coming == "b"


async def test_full_hosts_are_waited_for_and_the_error_names_the_setting():
    hosts = [Host("a", 3), Host("b", 3)]
    began = time.monotonic()
    with pytest.raises(InfrastructureFailure, match="a, b had sandbox.per_host=3") as failure:
        await chosen(Placement(hosts, 3))
    assert not isinstance(failure.value, HostAway) and time.monotonic() - began >= 0.1
    waiting = asyncio.create_task(chosen(Placement(hosts, 3)))
    await asyncio.sleep(0.03)
    hosts[1].sandboxes = 2
    assert await waiting == "b"


async def test_a_snapshot_is_restored_where_it_is_however_loaded_that_host_is():
    hosts = [Host("a", 0, False), Host("b", 9, True)]
    assert await chosen(Placement(hosts, 0), SNAPSHOT) == "b"
    assert hosts[1].copies == []


async def test_a_snapshot_on_a_full_host_is_copied_to_the_least_loaded():
    hosts = [Host("a", 2, False), Host("b", 1, False), Host("c", 3, True)]
    assert await chosen(Placement(hosts, 3), SNAPSHOT) == "b"
    assert hosts[2].copies == [(SNAPSHOT, "b")]


async def test_a_snapshot_that_nobody_has_fails_at_once_and_one_on_a_host_that_is_away_when_time_is_up():
    hosts = [Host("a", 0, False), Host("b", 0, False)]
    with pytest.raises(InfrastructureFailure, match="none of a, b has snapshot sha256:abc") as failure:
        await chosen(Placement(hosts, 0), SNAPSHOT)
    assert not isinstance(failure.value, HostAway)
    hosts[1].is_away = True
    with pytest.raises(HostAway, match="b did not answer"):
        await chosen(Placement(hosts, 0), SNAPSHOT)
