"""What a pool makes ahead, whom it gives it to, and that none of it is lost."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.failures import InfrastructureFailure
from sandboxes import pool
from sandboxes.gate import Gate
from sandboxes.pool import WarmPool, plan, shares

KINDS = st.sampled_from("abcde")
COUNTS = st.dictionaries(KINDS, st.integers(0, 5)).map(Counter)


@given(st.lists(KINDS), st.integers(0, 40))
def test_places_are_all_given_in_proportion_to_what_was_asked_for(recent, size):
    places, asked = shares(recent, size), Counter(recent)
    assert places.total() == (size if recent else 0)
    for kind in asked:
        assert abs(places[kind] - size * asked[kind] / len(recent)) < 1


@given(st.lists(KINDS, min_size=1), COUNTS, COUNTS)
def test_a_plan_stays_within_the_size_drops_only_for_room_and_never_what_is_wanted(recent, ready, making):
    size = (ready + making).total() + 2
    want = shares(recent, size)
    make, drop = plan(want, ready, making, size)
    after = ready + making + make - drop
    assert after.total() <= size
    assert drop <= ready and (drop.total() == 0 or (ready + making + make).total() > size)
    assert all(after[kind] >= min(want[kind], (ready + making)[kind]) for kind in want)
    assert all(after[kind] <= max(want[kind], (ready + making)[kind]) for kind in want)


@given(st.lists(KINDS, min_size=1), COUNTS, st.integers(1, 20))
def test_followed_for_a_while_a_plan_leads_to_what_is_wanted(recent, ready, size):
    ready = Counter(list(ready.elements())[:size])
    want = shares(recent, size)
    make, drop = plan(want, ready, Counter(), size)
    assert ready + make - drop == want


class Spare:
    def __init__(self, kind):
        self.kind, self.closed, self.is_ended = kind, False, False

    def ended(self):
        return self.is_ended

    async def close(self):
        self.closed = True


class Host:
    """Makes spares; `fails` kinds can't be made."""

    def __init__(self, size, gate=None):
        self.made, self.fails, self.looked, self.seconds, self.making = [], set(), 0, 0.0, 0
        self.pool = WarmPool(size, gate or Gate(8), self.make, self.look_around)

    async def make(self, kind):
        self.making += 1
        await asyncio.sleep(self.seconds)
        if kind in self.fails:
            raise InfrastructureFailure("no")
        self.made.append(Spare(kind))
        return self.made[-1]

    async def look_around(self):
        self.looked += 1

    async def settle(self):
        for _ in range(200):
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pool, "LOOK_AT_GATE_EVERY_S", 0.0)


async def test_nothing_is_made_before_the_first_creation_and_nothing_where_the_size_is_zero():
    host, none = Host(4), Host(0)
    await host.settle()
    assert none.pool.take("a") is None
    await host.settle()
    assert host.made == none.made == []
    assert host.looked == none.looked == 0
    await host.pool.close()


async def test_what_was_taken_is_made_again_and_nobody_else_gets_it():
    host, taken = Host(3), []
    assert host.pool.take("a") is None
    for _ in range(4):
        await host.settle()
        assert host.pool.ready("a") == 3
        taken.append(host.pool.take("a"))
    assert len(set(map(id, taken))) == 4 and not any(spare.closed for spare in taken)
    await host.pool.close()
    assert all(spare.closed != (spare in taken) for spare in host.made)


async def test_another_kind_takes_the_place_of_one_that_is_asked_for_no_more():
    host, taken = Host(2), []
    for kind in "aabb":
        taken.append(host.pool.take(kind))
        await host.settle()
    assert (host.pool.ready("a"), host.pool.ready("b")) == (0, 2)
    assert all(spare.closed != (spare in taken) for spare in host.made if spare.kind == "a")
    await host.pool.close()


async def test_one_whose_shell_has_ended_is_removed_and_replaced():
    host = Host(2)
    host.pool.take("a")
    await host.settle()
    host.made[0].is_ended = True
    assert host.pool.take("a") is host.made[1]
    await host.settle()
    assert host.made[0].closed and host.pool.ready("a") == 2
    await host.pool.close()


async def test_a_kind_that_cannot_be_made_is_left_alone_until_it_is_asked_for_again(caplog):
    host = Host(2)
    host.fails = {"a"}
    host.pool.take("a")
    await host.settle()
    assert caplog.messages == ["no sandbox can be made ahead: no"] * 2
    host.fails = set()
    await host.settle()
    assert host.made == []
    host.pool.take("a")
    await host.settle()
    assert host.pool.ready("a") == 2
    await host.pool.close()


async def test_as_many_are_made_at_a_time_as_the_gate_has_room_for(monkeypatch):
    monkeypatch.setattr(pool, "CLOSE_S", 0.0)
    gate = Gate(4)
    host = Host(8, gate)
    host.seconds = 60
    host.pool.take("a")
    await host.settle()
    assert host.making == gate.spare == 2
    await host.pool.close()


async def test_closing_waits_for_what_is_being_made_and_removes_it():
    host = Host(2)
    host.seconds = 0.05
    host.pool.take("a")
    await host.settle()
    await host.pool.close()
    assert len(host.made) == 2 and all(spare.closed for spare in host.made)


async def test_a_mistake_in_the_program_reaches_who_takes_next():
    host = Host(2)

    async def make(kind):
        raise KeyError(kind)

    host.pool._make = make
    host.pool.take("a")
    await host.settle()
    with pytest.raises(KeyError):
        host.pool.take("a")
