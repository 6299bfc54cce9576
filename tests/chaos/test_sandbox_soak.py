"""Many life cycles of sandboxes while their owner is killed again and again: nothing is left, and memory is flat."""

import asyncio
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import docker
import numpy as np
import psutil
import pytest

from klong_rl.beside import beside
from sandboxes.container import parse_name
from sandboxes.docker import DockerSandboxes

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

ROOT = Path(__file__).resolve().parents[2]
EPISODES = int(os.environ.get("KLONG_SOAK_EPISODES", "1000"))
WARM = 4
KILL_EVERY_S = (2.0, 8.0)
FLAT = 1.05  # of the level after SETTLED episodes, by which caches and thread pools have their size
SAID_CHARS = 4000  # of what an owner that failed said last
SETTLED = min(100, EPISODES // 4)


class Owner:
    """Takes `episodes` to their end, in as many processes one after the other as it is killed times."""

    def __init__(self, run, episodes, seed):
        self.run, self.left, self.seed = run, list(episodes), seed
        self.rss, self.kills = [], 0

    async def work(self, kill_after_s=None):
        """Until all are done. Each process but the last is killed after `kill_after_s()` seconds."""
        while self.left:
            command = (sys.executable, "-m", "tests.chaos.sandbox_owner", self.run, ",".join(self.left))
            self.seed += 1
            said = tempfile.TemporaryFile()
            process = await asyncio.create_subprocess_exec(
                *command, str(WARM), str(self.seed), stdout=asyncio.subprocess.PIPE, stderr=said, cwd=ROOT
            )
            try:
                async with asyncio.timeout(kill_after_s and kill_after_s()):
                    await self._listen(process)
            except TimeoutError:
                process.kill()
                self.kills += 1
                await self._listen(process)
            else:
                said.seek(0)
                why = said.read().decode(errors="replace")[-SAID_CHARS:]
                assert await process.wait() == 0, f"the owner ended with {process.returncode}:\n{why}"
                assert not self.left
            finally:
                said.close()

    async def _listen(self, process):
        while line := (await process.stdout.readline()).decode():
            _, episode, rss = line.split()
            self.left.remove(episode)
            self.rss.append(int(rss))


def belongings(api, run):
    """Whatever of the run is there."""
    label, ways_out = {"label": f"klong.run={run}"}, {"label": f"klong.egress={run}"}
    boxes = [each["Names"][0] for mine in (label, ways_out) for each in api.containers(all=True, filters=mine)]
    others = [each["Name"] for each in [*api.networks(), *(api.volumes()["Volumes"] or ())] if run in each["Name"]]
    return boxes + others + [each["Id"] for each in api.images(all=True, filters=label)]


async def collect_ids(api, run, ids):
    """Of all the containers that the run has, as they come and go."""
    while True:
        ids |= {each["Id"] for each in await asyncio.to_thread(api.containers, filters={"label": f"klong.run={run}"})}
        await asyncio.sleep(0.2)


def processes_of(ids):
    """Those whose command line names one of the containers: what starts and watches them."""
    lines = (process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if ids & set(line)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_nothing_is_left_of_many_episodes_whose_owner_was_killed_again_and_again():
    run, rng = f"test-{uuid.uuid4().hex[:8]}", random.Random(0)
    api = docker.APIClient(version="auto")
    reaper = DockerSandboxes(run)
    ids = set()
    victim = Owner(run, [f"v{n}" for n in range(EPISODES // 2)], 1000)
    steady = Owner(run, [f"s{n}" for n in range(EPISODES - EPISODES // 2)], 0)
    began = time.monotonic()
    try:
        async with beside(collect_ids(api, run, ids)), asyncio.TaskGroup() as group:
            group.create_task(victim.work(lambda: rng.uniform(*KILL_EVERY_S)))
            group.create_task(steady.work())
        left = belongings(api, run)
        print(f"{EPISODES} episodes, {victim.kills} kills, {time.monotonic() - began:.0f} s; left to reap: {left}")
        # What a killed process had made ahead waits for ten minutes, or the reaper; a snapshot that was being made may
        # have come after the episode's end.
        assert not [name for name in left if name.startswith("/") and parse_name(name).episode]
        await reaper.reap(keep=set())
        assert belongings(api, run) == []
    finally:
        await reaper.reap(keep=set())
        await reaper.close()
    assert len(ids) > EPISODES / 2 and processes_of(ids) == []
    api.close()
    level, end = np.median(steady.rss[SETTLED * 4 // 5 : SETTLED]), np.median(steady.rss[-20:])
    print(f"resident memory of the steady owner: {level / 2**20:.1f} MiB, at the end {end / 2**20:.1f} MiB")
    assert victim.kills > EPISODES / 100 and end <= FLAT * level
