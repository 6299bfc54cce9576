"""The buffer's client on a real Redis: what arrives is what was sent, once, within a deadline."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from klong_rl.buffer import (
    Buffer,
    BufferAddress,
    Conflict,
    EmbeddedRedis,
    Snapshot,
    StaleEpoch,
    Unknown,
    WrongState,
)
from klong_rl.buffer.client import SEGMENTS_A_CALL
from klong_rl.types import Outcome, Verdict
from klong_rl.wire import encode
from tests.episodes import judged, segment, spec, window

pytestmark = pytest.mark.integration

RUNS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as server:
        yield server


@pytest.fixture
async def buffer(server: EmbeddedRedis) -> AsyncIterator[Buffer]:
    async with await Buffer.connect(BufferAddress(server.url, f"run-{next(RUNS)}")) as buffer:
        yield buffer


async def test_an_episode_from_admission_to_consumption(buffer: Buffer) -> None:
    assert await buffer.admit(spec("g", 0, 2)) and await buffer.admit(spec("g", 1, 2))
    assert not await buffer.admit(spec("g", 1, 2))
    first, second = await buffer.claim("actor-0"), await buffer.claim("actor-1")
    assert (first, second) == ((spec("g", 0, 2), 1), (spec("g", 1, 2), 1))
    assert await buffer.claim("actor-0") is None
    assert await buffer.running("actor-1") == [("g-1", 1)]
    for seq in range(3):
        await buffer.append("g-0", 1, segment("g-0", seq))
    await buffer.seal("g-0", 1, Outcome(kind="timeout", detail="9 s"))
    assert await buffer.next_to_judge("judge") == (spec("g", 0, 2), 1, Outcome(kind="timeout", detail="9 s"))
    assert await buffer.next_to_judge("judge") is None
    assert await buffer.verdict("g-0", 1, Verdict(score=0.1))
    assert await buffer.next_group_to_close() is None
    assert await buffer.drop("g-1", "image is gone", epoch=1)
    assert await buffer.next_group_to_close() == "g"

    judged, dropped = await buffer.group("g")
    assert judged[:3] == (spec("g", 0, 2), Outcome(kind="timeout", detail="9 s"), Verdict(score=0.1))
    assert [encode(s) for s in judged.segments] == [encode(segment("g-0", seq)) for seq in range(3)]
    assert dropped == (spec("g", 1, 2), None, None, [])

    assert await buffer.close_group("g", [window("g", 0), window("g", 1)])
    assert await buffer.ready() == (2, 9, 1)
    refs = await buffer.lease(0, 1, oldest_version=0)
    assert refs[1] == refs[1].of(window("g", 1)) and refs[1].n_tokens == 5 and refs[1].n_targets == 2
    found = await buffer.windows(["g/w1", "g/w0"])
    assert [encode(w) for w in found] == [encode(window("g", 1)), encode(window("g", 0))]
    assert await buffer.leased_steps() == [0]
    assert await buffer.commit(0) == 1 and await buffer.leased_steps() == []
    assert await buffer.consumed() == ["g"] and [r.id for r in await buffer.refs("g")] == ["g/w0", "g/w1"]
    counts = await buffer.counts()
    assert counts.outcomes == {"train": {"timeout": 1}, "eval": {}} and counts.drops == {"image is gone": 1}
    assert counts.states == {"judged": 1, "dropped": 1} and counts.windows == {"consumed": 2}
    assert await buffer.forget("g")
    with pytest.raises(Unknown, match="window g/w0"):
        await buffer.windows(["g/w0"])
    assert not await buffer.admit(spec("g", 0, 2))


async def test_forgetting_leaves_no_payload_behind(buffer: Buffer, server: EmbeddedRedis) -> None:
    await judged(buffer, spec("g"))
    await buffer.close_group("g", [window("g", 0), window("g", 1, version=-9)])
    await buffer.lease(0, 1, oldest_version=0)
    await buffer.commit(0)
    await buffer.forget("g")
    client = redis.Redis(unix_socket_path=server.url.removeprefix("unix://"), decode_responses=True)
    left = {key.split("}:")[1] for key in client.scan_iter(f"klong:{{run-{next(RUNS) - 1}}}:*")}
    kinds = {key.split(":")[0] for key in left}
    assert kinds == {"n", "receipt", "order", "forgotten", "committed"}


async def test_what_another_holder_stages_in_between_is_not_taken_for_ours(buffer: Buffer) -> None:
    """A process that was thought dead may write between our two commands; then the script asks for them again."""
    await buffer.admit(spec("g"))
    await buffer.claim("actor")
    connection, ours, theirs = buffer._redis, segment("g-0", 0), segment("g-0", 0, observation_tokens=9)
    call = ("EVALSHA", connection._scripts["append"].sha, 1, buffer._key(""), "g-0", 1, 0, encode(ours)[:16], 5)
    await connection.read("test", ("SET", buffer._key("staged", "g-0", 0), encode(theirs)))
    with pytest.raises(redis.exceptions.TryAgainError, match="segment g-0/0 isn't staged as it was announced"):
        await connection._server.client.execute_command(*call)
    assert await buffer.segments("g-0") == []
    await buffer.append("g-0", 1, ours)
    assert [encode(found) for found in await buffer.segments("g-0")] == [encode(ours)]


async def test_what_a_dead_holder_had_staged_goes_with_its_episode(buffer: Buffer) -> None:
    await buffer.admit(spec("g"))
    await buffer.claim("actor")
    staged = [buffer._key("staged", "g-0", seq) for seq in range(1, 1 + SEGMENTS_A_CALL)]
    await buffer._redis.read("test", ("MSET", *(word for key in staged for word in (key, b"lost"))))
    await buffer.append("g-0", 1, segment("g-0", 0))
    await buffer.drop("g-0", "straggler")
    assert await buffer._redis.read("test", ("EXISTS", *staged)) == [0]


async def test_segments_are_appended_together_or_not_at_all(buffer: Buffer) -> None:
    await buffer.admit(spec("g"))
    await buffer.claim("actor")
    some = [segment("g-0", seq) for seq in range(SEGMENTS_A_CALL)]
    await buffer.append_many("g-0", 1, some)
    await buffer.append_many("g-0", 1, [*some[-2:], segment("g-0", 32)])  # some of them again
    with pytest.raises(Conflict, match="segment g-0/32"):
        await buffer.append_many("g-0", 1, [segment("g-0", 32, observation_tokens=9), segment("g-0", 33)])
    with pytest.raises(ValueError, match="33 segments appended to g-0; 1 to 32 go in a call"):
        await buffer.append_many("g-0", 1, [*some, segment("g-0", 32)])
    with pytest.raises(ValueError, match="segment 5 of episode g-0 appended to g-0 as segment 4"):
        await buffer.append_many("g-0", 1, [some[3], some[5]])
    found = await buffer.segments("g-0")
    assert [encode(one) for one in found] == [encode(one) for one in [*some, segment("g-0", 32)]]
    assert (await buffer.counts()).appended == {"segments": 33, "tokens": 165}


async def test_evaluation_goes_first(buffer: Buffer) -> None:
    for one in (spec("t0"), spec("e0", purpose="eval"), spec("t1"), spec("e1", purpose="eval")):
        await buffer.admit(one)
    claims = [await buffer.claim("actor") for _ in range(4)]
    assert [claim.spec.group for claim in claims] == ["e0", "e1", "t0", "t1"]
    for claim in claims[::-1]:
        await buffer.seal(claim.spec.id, claim.epoch, Outcome(kind="submitted"))
    order = [(await buffer.next_to_judge("judge")).spec.group for _ in range(4)]
    assert order == ["e0", "e1", "t0", "t1"]


async def test_a_requeued_episode_keeps_its_place_and_counts_its_failures(buffer: Buffer) -> None:
    for group in ("a", "b"):
        await buffer.admit(spec(group))
    claim = await buffer.claim("actor")
    await buffer.append("a-0", 1, segment("a-0", 0))
    assert await buffer.requeue("a-0", claim.epoch, "engine died") == 1
    assert await buffer.claim("actor") == (spec("a"), 2)
    assert [s.seq for s in await buffer.segments("a-0")] == [0]
    with pytest.raises(StaleEpoch, match="epoch 1 doesn't hold it"):
        await buffer.append("a-0", 1, segment("a-0", 1))
    assert await buffer.requeue("a-0", 2, "sandbox died") == 2
    await buffer.claim("actor")
    await buffer.append("a-0", 3, segment("a-0", 1))
    view = await buffer.episode("a-0")
    assert (view.state, view.epoch, view.failures, view.n_segments) == ("running", 3, 0, 2)
    assert await buffer.abandon("another", "it died") == 0
    assert await buffer.abandon("actor", "it died") == 1
    assert (await buffer.counts()).requeues == {"engine died": 1, "sandbox died": 1, "it died": 1}


async def test_a_new_holder_finds_all_that_it_needs_to_go_on(buffer: Buffer) -> None:
    await buffer.admit(spec("a"))
    await buffer.claim("actor")
    await buffer.append("a-0", 1, segment("a-0", 0))
    await buffer.keep_snapshot("a-0", 1, 1, "sha256:abc")
    turn = segment("a-0", 1).turns[0]
    await buffer.intend("a-0", 1, 1, turn)
    await buffer.abandon("actor", "it died")
    await buffer.claim("actor")
    progress = await buffer.progress("a-0")
    assert [s.seq for s in progress.segments] == [0] and progress.snapshot == Snapshot("sha256:abc", 1)
    assert encode(progress.intended) == encode(turn) and progress.outcome is None
    assert await buffer.rewind("a-0", 2, 0, "sandbox gone") == 2 * len(turn.action_A)
    assert await buffer.progress("a-0") == ([], None, None, None)
    counts = await buffer.counts()
    assert counts.appended == {"segments": 1, "tokens": len(turn.action_A)}
    assert counts.discarded == {"sandbox gone": 2 * len(turn.action_A)}


async def test_the_episode_of_a_dead_judge_comes_back(buffer: Buffer) -> None:
    await buffer.admit(spec("g"))
    await buffer.claim("actor")
    await buffer.seal("g-0", 1, Outcome(kind="submitted"))
    assert await buffer.next_to_judge("judge-0", visible_s=0.3)
    assert await buffer.next_to_judge("judge-1") is None
    await asyncio.sleep(0.35)
    assert (await buffer.next_to_judge("judge-1")).spec.id == "g-0"
    assert (await buffer.episode("g-0")).owner == "judge-1"
    assert await buffer.verdict("g-0", 1, Verdict(score=1.0))
    assert not await buffer.verdict("g-0", 1, Verdict(score=0.0))
    assert (await buffer.episode("g-0")).verdict.score == 1.0


async def test_a_repeated_request_gets_its_old_answer_until_that_is_gone(buffer: Buffer) -> None:
    await judged(buffer, spec("a"))
    await buffer.admit(spec("b"))
    claim = await buffer.claim("actor", request="r")
    assert await buffer.claim("actor", request="r") == claim == (spec("b"), 1)
    await buffer.seal("b-0", 1, Outcome(kind="submitted"))
    taken = await buffer.next_to_judge("judge", request="r")  # another transition's request of the same name
    assert await buffer.next_to_judge("judge", request="r") == taken
    await buffer.requeue("b-0", 1, "its snapshot is gone")
    with pytest.raises(StaleEpoch):
        await buffer.next_to_judge("judge", request="r")
    await buffer.drop("b-0", "attempts exhausted")
    await buffer.close_group("b", [])
    await buffer.forget("b")
    for repeated in (buffer.claim("actor", request="r"), buffer.next_to_judge("judge", request="r")):
        with pytest.raises(Unknown, match="episode b-0"):
            await repeated


async def test_many_actors_get_each_episode_once(buffer: Buffer, server: EmbeddedRedis) -> None:
    for i in range(100):
        await buffer.admit(spec(f"g{i}"))
    address = BufferAddress(server.url, f"run-{next(RUNS) - 1}")
    others = [await Buffer.connect(pickle.loads(pickle.dumps(address))) for _ in range(4)]
    claims = await asyncio.gather(*(other.claim(f"a{i}") for other in others for i in range(30)))
    for other in others:
        await other.close()
    got = [claim.spec.id for claim in claims if claim]
    assert len(got) == 100 == len(set(got))


async def test_the_learner_comes_back_to_what_it_had_not_saved(buffer: Buffer) -> None:
    for name in "abcd":
        await judged(buffer, spec(name))
        await buffer.close_group(name, [window(name, 0)])
    leases = [[ref.group for ref in await buffer.lease(step, 1, oldest_version=0)] for step in range(3)]
    assert leases == [["a"], ["b"], ["c"]]
    assert await buffer.commit(0) == 1
    assert await buffer.rollback(0) == 2  # restored from the checkpoint of step 0
    assert [ref.group for ref in await buffer.lease(1, 2, oldest_version=0)] == ["b", "c"]
    assert [ref.group for ref in await buffer.lease(2, 1, oldest_version=0)] == ["d"]
    assert await buffer.lease(3, 1, oldest_version=0) == []


async def test_what_is_too_stale_is_dropped_and_counted(buffer: Buffer) -> None:
    for name in "ab":
        await judged(buffer, spec(name))
    await buffer.close_group("a", [window("a", 0, version=0), window("a", 1, version=3)])
    await buffer.close_group("b", [window("b", 0, version=4)])
    assert await buffer.publish_version(floor=4) == 5
    assert [ref.id for ref in await buffer.lease(0, 2, oldest_version=3)] == ["a/w1", "b/w0"]
    assert (await buffer.counts()).windows == {"leased": 2, "stale": 1}
    assert await buffer.ready() == (0, 0, 0)


async def test_evaluation_scores_outlive_the_episodes(buffer: Buffer) -> None:
    await judged(buffer, spec("eval-s1-a", purpose="eval"), score=0.25)
    await judged(buffer, spec("eval-s2-a", 0, 2, "eval"), spec("eval-s2-a", 1, 2, "eval"), score=0.1)
    with pytest.raises(WrongState, match="never trained"):
        await buffer.close_group("eval-s1-a", [window("eval-s1-a", 0)])
    for _ in range(2):
        await buffer.close_group(await buffer.next_group_to_close(), [])
    await buffer.forget("eval-s2-a")
    assert await buffer.scores("eval-s2") == {"eval-s2-a-0": 0.1, "eval-s2-a-1": 0.1}
    assert await buffer.scores() == {"eval-s1-a-0": 0.25, "eval-s2-a-0": 0.1, "eval-s2-a-1": 0.1}
