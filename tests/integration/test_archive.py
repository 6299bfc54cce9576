"""From a real Redis to Parquet: each consumed group in one file, once, whatever crashes between file and forget."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, Unavailable, Unknown
from klong_rl.buffer.archive import GROUPS_A_FILE, ArchiveFiles, Archiver
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict, Window
from klong_rl.windows import split

pytestmark = pytest.mark.integration

RUNS = itertools.count()
PREFIX = np.arange(7, dtype=np.int32)


class Crash(BaseException):
    """The process ends here."""


class Crashing(Buffer):
    """A buffer whose process ends after some more groups are forgotten."""

    lives = 0

    async def forget(self, group: str) -> bool:
        if self.lives == 0:
            raise Crash
        self.lives -= 1
        return await super().forget(group)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as server:
        yield server


@pytest.fixture
def address(server: EmbeddedRedis) -> BufferAddress:
    return BufferAddress(server.url, f"archive-{next(RUNS)}")


@pytest.fixture
async def buffer(address: BufferAddress) -> AsyncIterator[Buffer]:
    async with await Buffer.connect(address) as buffer:
        yield buffer


def spec(group: str, purpose: str = "train") -> EpisodeSpec:
    task = Task(id="relay/train/0", family="relay", instruction="Follow.", image="none")
    return EpisodeSpec(
        id=f"{group}-0", group=group, group_size=1, stage=2, purpose=purpose, task=task, timeout_s=9.0, max_turns=4
    )


def turn(index: int) -> Turn:
    return Turn(
        index=index, context_start=index // 2, action_A=np.array([index, 5], np.int32),
        logprobs_A=np.full(2, -0.25, np.float32), versions=((0, 1), (1, 1)),
        observation_O=np.arange(3, dtype=np.int32), command="ls", exit_code=0, seconds=0.5,
    )  # fmt: skip


async def finished(buffer: Buffer, one: EpisodeSpec, turns: int = 3) -> None:
    """Takes an episode all the way to a closed group; nothing else may be queued."""
    await buffer.admit(one)
    claim = await buffer.claim("actor")
    for index in range(turns):
        prefix = PREFIX if index == 0 else None
        segment = Segment(episode=one.id, epoch=claim.epoch, seq=index, turns=(turn(index),), prefix_P=prefix)
        await buffer.append(one.id, claim.epoch, segment)
    await buffer.seal(one.id, claim.epoch, Outcome(kind="submitted"))
    await buffer.verdict(one.id, claim.epoch, Verdict(score=0.75))
    windows: list[Window] = split(one, PREFIX, [turn(i) for i in range(turns)], 0.75) if one.purpose == "train" else []
    await buffer.close_group(one.group, windows)


async def trained(buffer: Buffer, step: int, *groups: str) -> None:
    for group in groups:
        await finished(buffer, spec(group))
    await buffer.lease(step, len(groups), 0)
    await buffer.commit(step)


def held(folder: Path) -> list[tuple[str, int]]:
    """(group, turn) of every row of every file."""
    rows = [row for path in ArchiveFiles(folder).paths() for row in pq.read_table(path).to_pylist()]
    return sorted((row["group"], row["turn"]) for row in rows)


def turns_of(*groups: str, turns: int = 3) -> list[tuple[str, int]]:
    return sorted((group, turn) for group in groups for turn in range(turns))


async def test_what_is_consumed_is_archived_and_leaves_redis_and_what_isnt_stays(buffer, tmp_path):
    await trained(buffer, 7, "s1-g0", "s1-g1")
    await finished(buffer, spec("eval-g0", "eval"))
    await finished(buffer, spec("s1-g2"))
    await Archiver(buffer, tmp_path).finish()

    (path,) = ArchiveFiles(tmp_path).paths()
    rows = pq.read_table(path).to_pylist()
    assert {(row["group"], row["step"]) for row in rows} == {("s1-g0", 7), ("s1-g1", 7), ("eval-g0", None)}
    assert {row["window"] for row in rows} == {None, *(f"s1-g{i}-0/w{w}" for i in (0, 1) for w in (0, 1))}
    assert rows[0]["prefix"] == PREFIX.tolist() and rows[0]["versions"] == [0, 1] and rows[0]["score"] == 0.75
    assert held(tmp_path) == turns_of("s1-g0", "s1-g1", "eval-g0")
    assert await buffer.consumed() == []
    assert await buffer.group_states(["s1-g0", "s1-g2", "eval-g0"]) == {"s1-g2": "ready"}
    assert await buffer.scores("eval-") == {"eval-g0-0": 0.75}, "evaluation outlives the archive"


async def test_a_driver_that_starts_again_doesnt_sample_an_archived_group_again(buffer, tmp_path):
    await trained(buffer, 1, "s1-g0")
    await Archiver(buffer, tmp_path).finish()
    assert await buffer.admit(spec("s1-g0")) is False
    assert await buffer.group_states(["s1-g0"]) == {}
    assert await buffer.claim("actor") is None


async def test_a_group_that_is_forgotten_while_it_is_read_is_unknown(buffer):
    """Between the read of its members and the read of their episodes."""
    await trained(buffer, 1, "a")
    await buffer._redis.read("test", ("DEL", buffer._key("episode", "a-0")))
    with pytest.raises(Unknown, match="group a"):
        await buffer.group("a")


async def test_nothing_consumed_makes_no_file(buffer, tmp_path):
    await Archiver(buffer, tmp_path / "archive").finish()
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("forgotten_before", [0, 1, 2])
async def test_a_crash_between_file_and_forget_changes_nothing(address, buffer, tmp_path, forgotten_before):
    await finished(buffer, spec("first"))  # closed before the others, consumed after them
    for group in ("a", "b", "c"):
        await finished(buffer, spec(group, "eval"))
    async with await Crashing.connect(address) as crashing:
        crashing.lives = forgotten_before
        with pytest.raises(Crash):
            await Archiver(crashing, tmp_path).finish()
    assert len(await buffer.consumed()) == 3 - forgotten_before, "the fault fired"
    await buffer.lease(1, 1, 0)
    await buffer.commit(1)
    assert (await buffer.consumed())[0] == "first"

    await Archiver(buffer, tmp_path).finish()
    assert held(tmp_path) == turns_of("a", "b", "c", "first")
    assert [path.name for path in ArchiveFiles(tmp_path).paths()] == ["groups-000001.parquet", "groups-000002.parquet"]
    assert await buffer.consumed() == []


async def test_a_crash_while_the_file_is_written_leaves_the_groups_in_redis(buffer, tmp_path):
    await trained(buffer, 1, "a")
    (tmp_path / ".groups.partial").write_bytes(b"PAR1 half a file")
    await Archiver(buffer, tmp_path).finish()
    assert held(tmp_path) == turns_of("a") and not (tmp_path / ".groups.partial").exists()


async def test_more_than_one_file_takes_goes_into_several(buffer, tmp_path):
    names = [f"eval-{i:03d}" for i in range(GROUPS_A_FILE + 3)]
    for name in names:
        await finished(buffer, spec(name, "eval"), turns=1)
    await Archiver(buffer, tmp_path).finish()
    assert len(ArchiveFiles(tmp_path).paths()) == 2 and held(tmp_path) == turns_of(*names, turns=1)


async def test_groups_of_long_episodes_go_into_a_file_each_and_all_of_them_do(buffer, tmp_path, monkeypatch):
    monkeypatch.setattr("klong_rl.buffer.archive.TURNS_A_FILE", 3)
    await trained(buffer, 1, "a", "b", "c")
    await Archiver(buffer, tmp_path).finish()
    assert len(ArchiveFiles(tmp_path).paths()) == 3 and held(tmp_path) == turns_of("a", "b", "c")


async def test_what_went_wrong_beside_the_training_is_raised_at_a_later_start(buffer, tmp_path):
    await trained(buffer, 1, "a")
    blocked = tmp_path / "archive"
    blocked.write_text("a file where the folder should be")
    archiver = Archiver(buffer, blocked)
    with pytest.raises(OSError, match="archive"):
        async with asyncio.timeout(20):
            while True:
                archiver.start()
                await asyncio.sleep(0.02)
    assert await buffer.consumed() == ["a"], "nothing is lost"


async def test_closing_ends_what_is_under_way_and_the_next_launch_does_it(buffer, tmp_path):
    await trained(buffer, 1, "a", "b")
    archiver = Archiver(buffer, tmp_path)
    archiver.start()
    await asyncio.sleep(0)
    await archiver.close()
    await Archiver(buffer, tmp_path).finish()
    assert held(tmp_path) == turns_of("a", "b")


async def test_a_buffer_that_is_gone_is_named_and_the_file_is_not_written_twice(address, tmp_path):
    with EmbeddedRedis(tmp_path / "run") as server:
        here = BufferAddress(server.url, "gone", deadline_s=0.5)
        async with await Buffer.connect(here) as buffer:
            await trained(buffer, 1, "a")
            server.stop()
            archiver = Archiver(buffer, tmp_path / "archive")
            with pytest.raises(Unavailable):
                await archiver.finish()
            server.start()
            await archiver.finish()
    assert held(tmp_path / "archive") == turns_of("a")
