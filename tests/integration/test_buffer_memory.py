"""Back-pressure on real servers: above the high-water mark new episodes wait, the others finish and make room."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.rollout import RolloutActor
from actors.settings import ActorSettings
from klong_rl.admission import Admission
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, Full
from klong_rl.buffer.memory import HIGH_WATER, LOOK_EVERY_S, MIB
from klong_rl.config import RunConfig
from klong_rl.types import Outcome, Verdict
from tests import redis_servers as servers
from tests.episodes import segment, spec, window

pytestmark = pytest.mark.integration

MEMORY_MB = 16
SEGMENT_TOKENS = 20_000  # of 4 bytes


@pytest.fixture
async def buffer(tmp_path: Path) -> AsyncIterator[Buffer]:
    with EmbeddedRedis(tmp_path, maxmemory_mb=MEMORY_MB) as server:
        async with await Buffer.connect(BufferAddress(server.url, "run", memory_mb=MEMORY_MB)) as buffer:
            yield buffer


async def fill(buffer: Buffer, episode: str) -> int:
    """Appends to a running episode until memory stays above the mark (buffers of Redis' own come and go); its segments.

    Long enough that the next `admit` or `claim` looks again.
    """
    seqs = itertools.count()
    while (await buffer.memory())[0] <= HIGH_WATER * MEMORY_MB * MIB:
        while (await buffer.memory())[0] <= HIGH_WATER * MEMORY_MB * MIB:
            await buffer.append(episode, 1, segment(episode, next(seqs), SEGMENT_TOKENS))
        await asyncio.sleep(LOOK_EVERY_S)
    return next(seqs)


async def test_above_the_mark_new_episodes_wait_and_the_others_make_room(buffer: Buffer) -> None:
    for name in ("a", "b"):
        await buffer.admit(spec(name))
    await buffer.claim("actor")
    n = await fill(buffer, "a-0")
    for call, argument in ((buffer.claim, "actor"), (buffer.admit, spec("c"))):
        with pytest.raises(Full, match="uses 1[2-5] MB, above the high-water mark of 12 MB .*raise buffer.memory_mb"):
            await call(argument)
    used, limit = await buffer.memory()
    assert used < limit == MEMORY_MB * MIB  # nothing that runs is near to being refused

    await buffer.intend("a-0", 1, n, segment("a-0", n).turns[0])
    await buffer.append("a-0", 1, segment("a-0", n))
    await buffer.seal("a-0", 1, Outcome(kind="submitted"))
    await buffer.next_to_judge("judge")
    await buffer.verdict("a-0", 1, Verdict(score=1.0))
    await buffer.close_group("a", [window("a", 0)])
    await buffer.lease(0, 1, oldest_version=0)
    await buffer.commit(0)
    with pytest.raises(Full):
        await buffer.claim("actor")
    await buffer.forget("a")
    await asyncio.sleep(LOOK_EVERY_S)
    assert (await buffer.claim("actor")).spec.id == "b-0" and await buffer.admit(spec("c"))


async def test_a_group_that_was_admitted_in_part_is_completed_later_and_the_warning_comes_once(buffer: Buffer) -> None:
    await buffer.admit(spec("a"))
    await buffer.claim("actor")
    told: list[str] = []
    admission, group = Admission(buffer, told.append), [spec("g", i, 3) for i in range(3)]
    await buffer.admit(group[0])
    n = await fill(buffer, "a-0")
    assert [await admission.admit(group) for _ in range(20)] == [False] * 20
    assert len(told) == 1 and told[0].startswith("no new episodes for now: admit: Redis at unix://")
    await buffer.rewind("a-0", 1, 0, "sandbox lost")
    assert n > 1
    await asyncio.sleep(LOOK_EVERY_S)
    assert await admission.admit(group)
    assert [member.spec for member in await buffer.group("g")] == group


async def test_a_rollout_actor_waits_and_says_so_once(buffer: Buffer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await buffer.admit(spec(name))
    await buffer.claim("actor")
    await fill(buffer, "a-0")
    actor = RolloutActor(ActorSettings(RunConfig(), tmp_path, "none", BufferAddress("unix:///none", "run"), {}), 0)
    actor._buffer, actor._owner = buffer, "rollout-0.1"  # in place of `start`, which brings up an engine
    assert [await actor._claim() for _ in range(200)] == [None] * 200
    (warning,) = actor._warnings.take()
    assert warning.startswith("no new episodes for now: claim: Redis at unix://")


async def test_in_a_cluster_only_the_node_that_holds_the_run_counts(tmp_path: Path) -> None:
    with servers.cluster(tmp_path, 3) as nodes:
        url = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        address = BufferAddress(f"redis+cluster://{url}", "run", memory_mb=MEMORY_MB)
        for node in nodes:
            holds = servers.holds(node, "klong:{run}:")
            key = next(key for key in map(str, itertools.count()) if servers.holds(node, key))
            node.ask("SET", key, "x" * MEMORY_MB * MIB)
            async with await Buffer.connect(address) as buffer:
                if holds:
                    with pytest.raises(Full, match="above the high-water mark"):
                        await buffer.admit(spec(f"of-{node.port}"))
                else:
                    assert await buffer.admit(spec(f"of-{node.port}"))
            node.ask("DEL", key)
