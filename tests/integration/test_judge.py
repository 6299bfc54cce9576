"""The judge on real Redis and real shells: scores, closes groups, and survives what agents leave behind."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from actors.judge import JudgeActor
from actors.settings import ActorSettings
from actors.snapshots import park_sealed
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.config import EndpointConfig, JudgeConfig, RunConfig
from klong_rl.errors import AdvantageError
from klong_rl.judging.record import Records
from klong_rl.types import EpisodeSpec, Limits, Outcome, Segment, Task, Turn
from sandboxes.process import ProcessSandboxes
from tests.fake_judge import FakeJudge
from tests.judged import reward
from tests.unit.judging.trees import leaf, node, small

pytestmark = pytest.mark.integration
RUNS = itertools.count()
ANSWERED_S = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as server:
        yield server


class Scene:
    """One run's buffer and sandboxes, with a judge at work."""

    def __init__(self, buffer: Buffer, sandboxes: ProcessSandboxes, judge: JudgeActor) -> None:
        self.buffer = buffer
        self.sandboxes = sandboxes
        self.judge = judge

    async def play(
        self,
        episode: str,
        size: int,
        *commands: str,
        purpose: str = "train",
        group: str = "g",
        lost: bool = False,
        **secret: Any,
    ) -> None:
        """An episode up to its seal: its sandbox after `commands`, one turn of two tokens."""
        secret = secret or {"file": "answer", "expected": "47"}
        task = Task(id="t", family="f", instruction="i", image="none", secret=secret)
        spec = EpisodeSpec(
            id=episode, group=group, group_size=size, stage=1, purpose=purpose, task=task, timeout_s=9.0, max_turns=9
        )
        await self.buffer.admit(spec)
        await self.attempt(*commands, lost=lost)

    async def attempt(self, *commands: str, lost: bool = False) -> None:
        """Claim what is queued, and leave its sandbox as `commands` leave it, or lose it."""
        claim = await self.buffer.claim("actor")
        await self.buffer.rewind(claim.spec.id, claim.epoch, 0, "sandbox gone")
        sandbox = await self.sandboxes.create(claim.spec.id, claim.epoch, "none", Limits())
        for command in commands:
            await sandbox.exec(command, timeout_s=5)
        turn = Turn(
            index=0,
            context_start=0,
            action_A=np.array([5, 6], np.int32),
            logprobs_A=np.array([-1, -2], np.float32),
            versions=((1, 2),),
            observation_O=np.zeros(0, np.int32),
        )
        prefix_P = np.array([1, 2], np.int32)
        segment = Segment(episode=claim.spec.id, epoch=claim.epoch, seq=0, turns=(turn,), prefix_P=prefix_P)
        await self.buffer.append(claim.spec.id, claim.epoch, segment)
        await (sandbox.close() if lost else sandbox.release())
        await self.buffer.seal(claim.spec.id, claim.epoch, Outcome(kind="submitted"))

    async def until(self, episode: str, state: str) -> None:
        async with asyncio.timeout(ANSWERED_S):
            while (await self.buffer.episode(episode)).state != state:
                assert not self.judging.done(), self.judging.result()
                await asyncio.sleep(0.02)

    async def removed(self, what: str = "[!.]*") -> None:
        """Return once the sandboxes of what was judged are gone, or what is named: snapshots go last."""
        async with asyncio.timeout(ANSWERED_S):
            while list(self.sandboxes.folder.glob(what)):
                await asyncio.sleep(0.02)

    async def closed(self, group: str = "g") -> None:
        async with asyncio.timeout(ANSWERED_S):
            while (await self.buffer.group_states([group]))[group] in ("open", "complete"):
                assert not self.judging.done(), self.judging.result()
                await asyncio.sleep(0.02)


@asynccontextmanager
async def scene(server, tmp_path, at_work=True, chosen=None, advantage="", **judge):
    address = BufferAddress(server.url, f"judge-{next(RUNS)}")
    settings = {"grading_timeout_s": 20} | judge
    config = RunConfig(judge=JudgeConfig(**settings), reward=chosen or reward("answer.digits_in_place"))
    config.agent.max_attempts = 2
    config.learner.advantage = advantage
    options = {"root": str(tmp_path), "allow_unisolated": True}
    factory = {"_target_": "sandboxes.process.ProcessSandboxes", "run": address.run, **options}
    judge = JudgeActor(ActorSettings(config, tmp_path, "", address, factory))
    async with await Buffer.connect(address) as buffer:
        stage = Scene(buffer, ProcessSandboxes(address.run, **options), judge)
        if not at_work:
            yield stage
            return
        async with working(stage):
            yield stage


@asynccontextmanager
async def working(stage):
    """The judge at work."""
    await stage.judge.start("judge-0.1", 1.0)
    stage.judging = asyncio.create_task(stage.judge.run())
    try:
        yield
    finally:
        await stage.judge.stop()
        await stage.judging


async def test_a_group_is_scored_and_its_windows_carry_the_advantages(server, tmp_path):
    async with scene(server, tmp_path) as stage:
        await stage.play("e0", 2, "echo 47 > answer")
        await stage.play("e1", 2, "echo 4 > answer")
        await stage.closed()
        assert {m.spec.id: m.verdict.score for m in await stage.buffer.group("g")} == {"e0": 1.0, "e1": 0.5}
        refs = await stage.buffer.lease(0, 1, oldest_version=0)
        windows = {w.episode: w for w in await stage.buffer.windows([ref.id for ref in refs])}
        assert {episode: w.advantage for episode, w in windows.items()} == {"e0": 0.25, "e1": -0.25}
        assert windows["e0"].tokens_T.tolist() == [1, 2, 5, 6] and windows["e0"].targets_T.tolist() == [0, 0, 1, 1]
        await stage.removed()


def inverse(windows):
    """An advantage rule that fails on a score of 1/3."""
    return [1 / (3 * window.score - 1) for window in windows]


async def test_a_group_that_the_advantage_rule_fails_on_holds_up_nothing(server, tmp_path):
    async with scene(server, tmp_path, advantage=f"{__name__}.inverse") as stage:
        for group, answer in (("g", "4"), ("h", "47"), ("i", "4"), ("j", "4")):
            await stage.play(group, 1, f"echo {answer} > answer", group=group, file="answer", expected="471")
            await stage.closed(group)
        refs = await stage.buffer.lease(0, 1, oldest_version=0)
        assert [window.episode for window in await stage.buffer.windows([ref.id for ref in refs])] == ["h"]
        assert [m.verdict.score for m in await stage.buffer.group("g")] == [1 / 3]
        warned = (await stage.judge.status())["warnings"]
        assert len(warned) == 3 and "group g is not trained: learner.advantage=" in warned[0]
        assert "the scores [0.333333], failed: ZeroDivisionError" in warned[0]


async def test_an_advantage_rule_that_fails_on_one_group_after_the_other_ends_the_judge(server, tmp_path):
    async with scene(server, tmp_path, at_work=False, advantage=f"{__name__}.inverse") as stage:
        with pytest.raises(AdvantageError, match="failed: ZeroDivisionError"):
            async with working(stage):
                for group in "ghi":
                    await stage.play(group, 1, "echo 4 > answer", group=group, file="answer", expected="471")
                async with asyncio.timeout(ANSWERED_S):
                    await asyncio.wait([stage.judging])
        states = await stage.buffer.group_states(list("ghi"))
        assert sorted(states.values()) == ["complete", "consumed", "consumed"], "the last waits for a better rule"


async def test_evaluation_is_scored_and_never_trained(server, tmp_path):
    async with scene(server, tmp_path) as stage:
        await stage.play("e0", 1, "echo 47 > answer", purpose="eval")
        await stage.closed()
        assert await stage.buffer.scores("g") == {"e0": 1.0}
        assert await stage.buffer.lease(0, 1, oldest_version=0) == []


async def test_a_group_that_another_judge_closed_and_that_was_archived_since_is_left_alone(server, tmp_path):
    async with scene(server, tmp_path) as stage:
        await stage.play("e0", 1, "echo 47 > answer", purpose="eval")
        await stage.closed()
        await stage.buffer.forget("g")
        await stage.judge._work("g")  # as if it had been named before all that
        assert await stage.buffer.group_states(["g"]) == {}


async def test_a_sandbox_that_is_gone_is_our_failure_and_never_a_score(server, tmp_path):
    async with scene(server, tmp_path) as stage:
        await stage.play("e0", 1, lost=True)
        await stage.until("e0", "queued")
        await stage.attempt(lost=True)
        await stage.until("e0", "dropped")
        view = await stage.buffer.episode("e0")
        assert view.verdict is None and "2 attempts" in view.reason
        await stage.closed()


async def test_what_a_stop_left_in_a_snapshot_is_judged_from_it(server, tmp_path):
    async with scene(server, tmp_path, at_work=False) as stage:
        await stage.play("e0", 1, "echo 47 > answer")
        await park_sealed(stage.buffer, stage.sandboxes)
        assert await stage.sandboxes.adopt("e0") is None, "a stop leaves no sandbox"
        async with working(stage):
            await stage.until("e0", "judged")
        assert (await stage.buffer.episode("e0")).verdict.score == 1.0
        assert (await stage.buffer.counts()).requeues == {}


async def test_a_sandbox_that_the_agent_broke_does_not_break_the_judge(server, tmp_path):
    async with scene(server, tmp_path) as stage:
        await stage.play("e0", 2, "cd .. && rmdir work")
        await stage.play("e1", 2, "echo 47 > answer")
        await stage.until("e1", "judged")
        assert not stage.judging.done()


def records(tmp_path):
    return [record for record, _ in Records(tmp_path / "judging" / "records").all()[0]]


async def test_a_verdict_names_its_record(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KLONG_SIGNING_KEY", "k" * 32)
    async with scene(server, tmp_path) as stage:
        await stage.play("e0", 1, "echo 47 > answer")
        await stage.until("e0", "judged")
        evidence = (await stage.buffer.episode("e0")).verdict.evidence
        (record,) = records(tmp_path)
        assert (record.episode, record.score, record.signature) == ("e0", 1.0, evidence["signature"])
        assert len(record.signature) == 64 and [read.path for read in record.reads] == ["answer"]


@pytest.mark.parametrize("keep", [False, True])
async def test_hidden_tests_leave_no_sandbox_and_a_snapshot_if_it_is_wanted(server, tmp_path, keep):
    async with scene(server, tmp_path, chosen=reward("tests.hidden_tests"), keep_snapshots=keep) as stage:
        await stage.play("e0", 1, "echo 5 > total", tests={"total": "test $(cat total) = 5"})
        await stage.until("e0", "judged")
        assert (await stage.buffer.episode("e0")).verdict.score == 1.0
        await stage.removed(".snapshots/e0/*" if not keep else "[!.]*")
        (record,) = records(tmp_path)
        assert [str(path) for path in stage.sandboxes.folder.glob(".snapshots/e0/*")] == [record.snapshot] * keep


async def test_an_episode_that_is_dropped_is_judged_no_further(server, tmp_path, monkeypatch):
    monkeypatch.setattr("actors.judge.LOOK_S", 0.05)
    async with FakeJudge(takes_s=60) as fake:
        endpoint = EndpointConfig(url=fake.url, model="m", requests_per_s=1e4, concurrent=1)
        async with scene(server, tmp_path, chosen=reward("rubric.rubric"), endpoint=endpoint) as stage:
            await stage.play("e0", 2, "echo 1 > a.py", rubric=small())
            async with asyncio.timeout(ANSWERED_S):
                while not fake.under_way:
                    await asyncio.sleep(0.02)
                await stage.buffer.drop("e0", "its group was closed without it")
                while fake.under_way:
                    await asyncio.sleep(0.02)
            assert len(fake.came) == 1 and not stage.judging.done()


async def test_a_judge_model_that_is_away_never_becomes_a_score(server, tmp_path):
    async with FakeJudge() as away:
        pass
    endpoint = EndpointConfig(url=away.url, model="m")
    async with scene(server, tmp_path, chosen=reward("rubric.rubric"), endpoint=endpoint, wait_s=0.5) as stage:
        await stage.play("e0", 2, "echo 1 > a.py", rubric=small())
        await stage.until("e0", "queued")
        view = await stage.buffer.episode("e0")
        assert view.verdict is None and view.failures == 1


async def test_how_urgent_a_group_is(server, tmp_path):
    async with scene(server, tmp_path, at_work=False) as stage:
        await stage.play("e0", 2, "true")
        first = await stage.buffer.group_progress("g")
        await stage.play("e1", 2, "true")
        assert (first.n_open, (await stage.buffer.group_progress("g")).n_open) == (1, 0)


async def test_evaluation_overtakes_what_waits_at_the_judge_model(server, tmp_path):
    train, held_out = (node("root", 1, *(leaf(f"{name}{i}") for i in range(n))) for name, n in (("t", 9), ("v", 3)))
    async with FakeJudge() as fake:
        fake.opened.clear()
        endpoint = EndpointConfig(url=fake.url, model="m", requests_per_s=1e4, concurrent=1)
        async with scene(server, tmp_path, chosen=reward("rubric.rubric"), endpoint=endpoint) as stage:
            lane = stage.judge._grader._endpoint.queue._lane
            await stage.play("e0", 1, "echo 1 > a.py", rubric=train)
            await stage.play("e1", 1, "echo 1 > a.py", rubric=held_out, purpose="eval", group="v")
            async with asyncio.timeout(ANSWERED_S):
                while lane.waiting < 9 + 3 - 1:
                    await asyncio.sleep(0.02)
            fake.opened.set()
            await stage.until("e0", "judged")
        asked = [body["messages"][1]["content"].split("Requirement:\nwhat ")[1][0] for body in fake.asked]
        assert asked[:1] in (["t"], ["v"]) and "".join(asked[1:]) in ("vvv" + "t" * 8, "vv" + "t" * 9)
