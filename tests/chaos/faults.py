"""The faults: what is killed, the proof that it died, and the progress that shows that the run has recovered.

fault       dies                                        recovered when
rollout     the process of a rollout actor, SIGKILL     another engine is there, and a segment is appended after
engine      vLLM's engine process, SIGKILL              the same
container   a running episode's: docker kill, or rm -f  that very episode appends a segment, or has ended
daemon      dockerd, SIGKILL; started 1 to 3 s later    a segment is appended after
redis       redis-server, SIGKILL                       it answers, and a segment, verdict or step is new after
rank        one rank of the learner, SIGKILL            a step trained from a version published after
judge       the process of a judge, SIGKILL             a verdict is given after
driver      the launch, SIGKILL; launched again         its new engine is there, and a segment or step is new after
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import docker
import psutil

from sandboxes.container import listed_name
from tests.chaos.scene import LOOK_S, Moment, Pulse, Scene, is_gone

ENGINE, ROLLOUT, RANK, JUDGE = "VLLM::EngineCore", "ray::RolloutActor", "ray::Rank", "ray::JudgeActor"
REDIS = "/usr/bin/redis-server"

VICTIM_S = 60.0  # for something to be there that can be killed
GONE_S = 10.0  # for what was killed to be gone
RECOVERY_S = 240.0  # several times what any takes on two cores
REMOVED_SHARE = 0.5  # of the killed containers: not only stopped, but gone with their files
DAEMON_DOWN_S = (1.0, 3.0)  # as a service manager restarts it
FINAL = ("judged", "dropped", "archived")


class NotFired(Exception):
    """Nothing was killed, or it didn't die: this kill doesn't count."""


class Kill(NamedTuple):
    """A fault that fired at a moment. `recovered()` is asked until it says so."""

    victim: str
    moment: Moment
    recovered: Callable[[], Awaitable[bool]]


async def rollout(scene: Scene, rng: random.Random) -> Kill:
    return await _engine_lost(scene, rng, ROLLOUT)


async def engine(scene: Scene, rng: random.Random) -> Kill:
    return await _engine_lost(scene, rng, ENGINE)


async def _engine_lost(scene: Scene, rng: random.Random, title: str) -> Kill:
    old = {process.pid for process in scene.processes(ENGINE)}
    victim, moment = await _kill_one(scene, rng, title)
    return Kill(victim, moment, _new_engine_and(scene, old, lambda before, now: now.appended > before.appended))


async def rank(scene: Scene, rng: random.Random) -> Kill:
    victim, moment = await _kill_one(scene, rng, RANK)
    return Kill(victim, moment, _growth(scene, lambda before, now: now.trained > before.version))


async def judge(scene: Scene, rng: random.Random) -> Kill:
    victim, moment = await _kill_one(scene, rng, JUDGE)
    return Kill(victim, moment, _growth(scene, lambda before, now: now.verdicts > before.verdicts))


async def redis(scene: Scene, rng: random.Random) -> Kill:
    victim, moment = await _kill_one(scene, rng, REDIS)
    return Kill(victim, moment, _growth(scene, lambda before, now: now[:3] != before[:3]))


async def driver(scene: Scene, rng: random.Random) -> Kill:
    process, moment = scene.launch.process, scene.moment()
    process.kill()
    process.wait(GONE_S)
    scene.start()
    goes_on = _new_engine_and(scene, set(), lambda before, now: now[:3] != before[:3])
    return Kill(f"launch {process.pid}", moment, goes_on)


async def daemon(scene: Scene, rng: random.Random) -> Kill:
    process, moment = psutil.Process(scene.daemon.pid), scene.moment()
    scene.daemon.kill()
    if not is_gone(process):
        raise NotFired(f"dockerd {process.pid} is still there")
    await asyncio.sleep(rng.uniform(*DAEMON_DOWN_S))
    await asyncio.to_thread(scene.daemon.start)
    goes_on = _growth(scene, lambda before, now: now.appended > before.appended)
    return Kill(f"dockerd {process.pid}", moment, goes_on)


async def container(scene: Scene, rng: random.Random) -> Kill:
    api = scene.docker()
    try:
        box, episode = await _running_container(scene, api, rng)
        before = api.inspect_container(box)["State"]
        removed = rng.random() < REMOVED_SHARE
        moment = scene.moment()
        if removed:
            api.remove_container(box, force=True)
        else:
            api.kill(box)
        await _prove(f"container {box} of {episode}", lambda: _is_dead(api, box, before))
        victim = f"{'removed' if removed else 'killed'} container of {episode}"
        return Kill(victim, moment, _episode_goes_on(scene, episode))
    except (docker.errors.NotFound, docker.errors.APIError) as error:
        raise NotFired(f"the container ended by itself: {error}") from error
    finally:
        api.close()


FAULTS: dict[str, Callable[[Scene, random.Random], Awaitable[Kill]]] = {
    "rollout": rollout,
    "engine": engine,
    "container": container,
    "daemon": daemon,
    "redis": redis,
    "rank": rank,
    "judge": judge,
    "driver": driver,
}


# Firing


async def _kill_one(scene: Scene, rng: random.Random, title: str) -> tuple[str, Moment]:
    """SIGKILL to one process that is called so, and the proof that it died; which, and when."""
    until = time.monotonic() + VICTIM_S
    while not (found := scene.processes(title)):
        if time.monotonic() > until or scene.ended():
            raise NotFired(f"no process {title} within {VICTIM_S:g} s")
        await asyncio.sleep(LOOK_S)
    victim = rng.choice(sorted(found, key=lambda process: process.pid))
    moment = scene.moment()
    victim.kill()
    await _prove(f"{title} {victim.pid}", lambda: is_gone(victim))
    return f"{title} {victim.pid}", moment


async def _prove(what: str, dead: Callable[[], bool]) -> None:
    until = time.monotonic() + GONE_S
    while not dead():
        if time.monotonic() > until:
            raise NotFired(f"{what} was killed and is still there after {GONE_S:g} s")
        await asyncio.sleep(0.02)


async def _running_container(scene: Scene, api: docker.APIClient, rng: random.Random) -> tuple[str, str]:
    """(id, episode) of a container whose episode is being run."""
    until = time.monotonic() + VICTIM_S
    while True:
        running = dict(await scene.ask(lambda reader: reader.running()) or [])
        boxes = [(listed_name(box).episode, box["Id"]) for box in api.containers()]
        if found := [(box, episode) for episode, box in sorted(boxes) if episode in running]:
            return rng.choice(found)
        if time.monotonic() > until or scene.ended():
            raise NotFired(f"no episode with a running container within {VICTIM_S:g} s")
        await asyncio.sleep(LOOK_S)


def _is_dead(api: docker.APIClient, box: str, before: dict) -> bool:
    """True if the container's main process of then is gone, even if another was started since."""
    try:
        now = api.inspect_container(box)["State"]
    except docker.errors.NotFound:
        return True
    return not now["Running"] or now["Pid"] != before["Pid"]


# Recovering


def _growth(scene: Scene, grew: Callable[[Pulse, Pulse], bool]) -> Callable[[], Awaitable[bool]]:
    """Compares each look with the first that Redis answers after the fault."""
    first: list[Pulse] = []

    async def recovered() -> bool:
        now = await scene.pulse()
        if now is None:
            return False
        if not first:
            first.append(now)
        return grew(first[0], now)

    return recovered


def _new_engine_and(scene: Scene, old: set[int], grew: Callable[[Pulse, Pulse], bool]) -> Callable[[], Awaitable[bool]]:
    growth = _growth(scene, grew)
    there: list[bool] = []

    async def recovered() -> bool:
        if not there and any(process.pid not in old for process in scene.processes(ENGINE)):
            there.append(True)
        return bool(there) and await growth()

    return recovered


def _episode_goes_on(scene: Scene, episode: str) -> Callable[[], Awaitable[bool]]:
    """Since the first look after the fault it has appended a segment (after a rewind it has fewer), or it has ended."""
    last: list[int] = []

    async def recovered() -> bool:
        standing = await scene.standing(episode)
        if standing is None:
            return False
        state, now = standing
        grew = bool(last) and now > last[-1]
        last.append(now)
        return state in FINAL or grew

    return recovered
