"""The fleet on a real Ray and a real Redis, with actors that are quick to start: whoever dies is replaced."""

import asyncio
import os
import signal
import time

import pytest
import ray
from msgspec.structs import replace

from klong_rl import fleet as fleets
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.config import RunConfig
from klong_rl.errors import AlreadyStarted
from klong_rl.fleet import ActorFailure, Fleet
from klong_rl.pacing import EngineLook
from klong_rl.types import EpisodeSpec, Task

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BACK_S = 30.0
EPISODE = EpisodeSpec(
    id="e", group="g", group_size=1, stage=1, purpose="train", timeout_s=9, max_turns=2,
    task=Task(id="t", family="none", instruction="", image="none"),
)  # fmt: skip


class Rollout:
    """Claims one episode and holds it. What it is told to do wrong, it does in its first life."""

    def __init__(self, settings, index):
        self._address, self._wrong = settings
        self._weights = []
        self._told = []
        self._owner = ""

    async def start(self, owner, life):
        if self._owner:  # as the real ones do
            raise AlreadyStarted(self._owner)
        self._owner, self._life = owner, life
        if self._wrong == "start" or (self._wrong == "first start" and life == 1):
            raise RuntimeError("no room for the model")
        self._buffer = await Buffer.connect(self._address)

    async def publish(self, path, version):
        if self._life == 1 and version == 2 and self._wrong == "hang":
            await asyncio.sleep(600)
        if self._life == 1 and version == 2 and self._wrong == "publish":
            raise RuntimeError("half replaced")
        self._weights.append((path, version))

    async def run(self):
        if not self._weights:
            raise RuntimeError("set to work without weights")
        await self._buffer.claim(self._owner)
        await asyncio.sleep(600)

    async def logprobs(self, tokens):
        return self._weights[-1]

    async def allow(self, episodes):
        self._told.append(episodes)

    async def status(self):
        load = EngineLook(actor=self._owner, episodes=1, ended=0, fits=8, waiting=0, kv_use=0.5, paused_s=0.0)
        told = f"{self._owner} {os.getpid()} {self._told}"
        return {"episodes": 1, "sampled_tokens": 10, "load": load, "sandboxes": {}, "warnings": [told]}

    async def stop(self):
        pass


class Judge:
    def __init__(self, settings):
        pass

    async def start(self, owner, share):
        self._owner, self._shares = owner, [share]

    async def share(self, share):
        self._shares.append(share)

    async def run(self):
        await asyncio.sleep(600)

    async def status(self):
        return {"sandboxes": {}, "warnings": [f"{self._owner} {os.getpid()} {self._shares}"]}

    async def stop(self):
        pass


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


class Scene:
    def __init__(self, buffer, fleet, told):
        self.buffer, self.fleet, self.told = buffer, fleet, told

    async def pids(self) -> dict[str, int]:
        """Process of each life that is at work."""
        lives = (text.split()[:2] for text in (await self.fleet.status())["warnings"])
        return {owner: int(pid) for owner, pid in lives}

    async def until_at_work(self, owner: str) -> None:
        until = time.monotonic() + BACK_S
        while owner not in await self.pids():
            self.fleet.check()
            assert time.monotonic() < until, f"no {owner}; told: {self.told}"
            await asyncio.sleep(0.05)

    async def until_held_by(self, owner: str) -> None:
        until = time.monotonic() + BACK_S
        while (held := (await self.buffer.episode("e")).owner) != owner:
            assert time.monotonic() < until, f"held by {held} and not by {owner}"
            await asyncio.sleep(0.05)


@pytest.fixture
async def scene(tmp_path, request):
    wrong = getattr(request, "param", "")
    with EmbeddedRedis(tmp_path) as server:
        address, told = BufferAddress(server.url, "fleet"), []
        async with await Buffer.connect(address) as buffer:
            await buffer.admit(EPISODE)
            fleet = Fleet(RunConfig(), (address, wrong), Rollout, Judge, buffer, told.append)
            await fleet.publish("cold", 1)
            yield Scene(buffer, fleet, told)
            await fleet.stop()


async def test_a_killed_process_comes_back_with_the_newest_weights_and_its_episode_goes_on(scene):
    await scene.fleet.start()
    await scene.until_held_by("rollout-0.1")
    os.kill((await scene.pids())["rollout-0.1"], signal.SIGKILL)
    await scene.fleet.publish("newer", 2)  # hits the dead process, or its successor before it is started
    assert scene.fleet.version == 2
    await scene.until_held_by("rollout-0.2")
    assert await scene.fleet.logprobs([1]) == [("newer", 2)]
    (told,) = scene.told
    assert told.startswith("rollout-0 died (its process ended): 1 episodes go on, started again in ")


async def test_a_judge_is_replaced_too(scene):
    await scene.fleet.start()
    os.kill((await scene.pids())["judge-0.1"], signal.SIGKILL)
    await scene.until_at_work("judge-0.2")
    assert len(scene.told) == 1 and "judge-0 died" in scene.told[0]


@pytest.mark.parametrize(
    "scene, why",
    [("publish", "RuntimeError: half replaced"), ("hang", "did not take version 2 within 3 s")],
    indirect=["scene"],
)
async def test_an_engine_that_can_t_take_new_weights_is_replaced(scene, why, monkeypatch):
    monkeypatch.setattr(fleets, "PUBLISH_DEADLINE_S", 3.0)
    await scene.fleet.start()
    began = time.monotonic()
    await scene.fleet.publish("newer", 2)
    assert time.monotonic() - began < 4, "a publish doesn't wait for the replacement"
    await scene.until_held_by("rollout-0.2")
    assert await scene.fleet.logprobs([1]) == [("newer", 2)]
    (told,) = scene.told
    assert why in told and "1 episodes go on" in told


@pytest.mark.parametrize("scene", ["first start"], indirect=True)
async def test_one_that_can_t_start_is_tried_again(scene):
    await scene.fleet.start()
    assert "rollout-0.2" in await scene.pids()
    (told,) = scene.told
    assert "rollout-0 ended before it was at work and is tried again" in told and "no room for the model" in told


@pytest.mark.parametrize(
    "answer", [ray.exceptions.ActorUnavailableError("restarting", b"a" * 16), AlreadyStarted("this is rollout-0.0")]
)
async def test_one_whose_process_is_long_in_the_making_is_waited_for(scene, monkeypatch, answer):
    (member, _) = scene.fleet._members
    actor, made_at = member.actor, time.monotonic() + 2

    class NotThereYet:
        def __getattr__(self, method):
            if time.monotonic() < made_at:
                raise (
                    answer
                    if isinstance(answer, ray.exceptions.RayError)
                    else ray.exceptions.RayTaskError(method, "", answer).as_instanceof_cause()
                )
            return getattr(actor, method)

    monkeypatch.setattr(member, "actor", NotThereYet())
    await scene.fleet.start()
    assert "rollout-0.1" in await scene.pids() and scene.told == []


@pytest.mark.parametrize("scene", ["start"], indirect=True)
async def test_one_that_never_starts_ends_the_run_with_its_error(scene):
    with pytest.raises(ActorFailure, match="rollout-0 ended 5 times within 30 s: .*no room for the model"):
        await scene.fleet.start()
    with pytest.raises(ActorFailure):
        scene.fleet.check()
    assert len(scene.told) == 4 and all("tried again" in text for text in scene.told)


async def test_an_actor_is_told_of_its_slots_when_they_change_and_its_next_life_again(scene):
    await scene.fleet.start()
    for slots in (8, 8, 6):
        await scene.fleet.allow({"rollout-0.1": slots})
    status = await scene.fleet.status()
    assert [load.actor for load in status["engines"]] == ["rollout-0.1"]
    assert status["warnings"][0].endswith("[8, 6]")
    os.kill((await scene.pids())["rollout-0.1"], signal.SIGKILL)
    await scene.until_at_work("rollout-0.2")
    await scene.fleet.allow({"rollout-0.2": 6})
    await scene.fleet.allow({"rollout-0.1": 9})  # decided before it died
    assert (await scene.fleet.status())["warnings"][0].endswith("[6]")


async def test_what_an_earlier_launch_ran_is_given_back_before_anything_is_claimed(scene):
    await scene.buffer.claim("rollout-0.7")
    await scene.fleet.start()
    await scene.until_held_by("rollout-0.1")


async def test_scaling_starts_actors_with_the_newest_weights_and_lets_go_of_others_whose_episodes_go_on(scene):
    await scene.fleet.start()
    await scene.until_held_by("rollout-0.1")
    await scene.fleet.publish("newer", 2)
    for n in range(3):
        await scene.buffer.admit(replace(EPISODE, id=f"e{n}", group=f"g{n}"))
    await scene.fleet.scale(rollout=3, judge=2)
    for owner in ("rollout-1.1", "rollout-2.1", "judge-1.1"):
        await scene.until_at_work(owner)
    assert scene.fleet.settled() and scene.fleet.sizes() == {"rollout": 3, "judge": 2}
    assert await scene.fleet.logprobs([1]) == 3 * [("newer", 2)]
    shares = [text.split(" ", 2)[2] for text in (await scene.fleet.status())["warnings"] if "judge" in text]
    assert shares == ["[1.0, 1.0, 0.5]", "[0.5, 0.5]"]
    until = time.monotonic() + BACK_S
    while len(held := dict(await scene.buffer.running())) < 3:
        assert time.monotonic() < until, held
        await asyncio.sleep(0.05)

    await scene.fleet.scale(rollout=1, judge=1)
    assert set(await scene.pids()) == {"rollout-0.1", "judge-0.1"} and scene.fleet.settled()
    assert await scene.buffer.running() == [("e", 1)], "what the others held is queued again"
    counts = await scene.buffer.counts()
    assert counts.states == {"running": 1, "queued": 3} and counts.drops == {}
    assert sum(counts.requeues.values()) == 2 and all("was let go of" in reason for reason in counts.requeues)
    scene.fleet.check()
    assert scene.told == []

    await scene.fleet.scale(rollout=2, judge=1)
    await scene.until_at_work("rollout-3.1")  # no name is used twice
    shares = [text.split(" ", 2)[2] for text in (await scene.fleet.status())["warnings"] if "judge" in text]
    assert shares[0].endswith("1.0]")


async def test_an_extra_actor_that_can_t_start_is_given_up_and_the_run_goes_on(scene):
    await scene.fleet.start()
    scene.fleet._pools._settings = (scene.fleet._pools._settings[0], "start")
    await scene.fleet.scale(rollout=2, judge=1)
    until = time.monotonic() + BACK_S
    while not (why := scene.fleet.gave_up()):
        assert time.monotonic() < until
        await asyncio.sleep(0.05)
    assert "no room for the model" in why and scene.fleet.sizes() == {"rollout": 1, "judge": 1}
    scene.fleet.check()
    assert "could not be started" in scene.told[-1]


async def test_a_life_that_begins_while_the_run_is_held_claims_nothing(scene):
    scene.fleet.hold(True)
    await scene.fleet.start()
    await scene.fleet.allow({"rollout-0.1": 8})
    assert (await scene.fleet.status())["warnings"][0].endswith("[0, 0]")
    scene.fleet.hold(False)
    await scene.fleet.allow({"rollout-0.1": 8})
    assert (await scene.fleet.status())["warnings"][0].endswith("[0, 0, 8]")
