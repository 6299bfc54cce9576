"""`python -m tests.chaos.sandbox_owner RUN EPISODES WARM SEED`: a process that takes episodes through their sandboxes.

EPISODES are names with commas between. Several at once; each is taken over if an earlier owner left something of it.
Prints `ended EPISODE RSS`, RSS in bytes after it, as each comes to its end, for whoever kills this process meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import sys

import psutil

from klong_rl.failures import InfrastructureFailure
from klong_rl.types import Limits, Network
from sandboxes.docker import DockerSandboxes

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=64)
WITH_NETWORK = Limits(memory_mb=64, pids=64, network=Network())
AT_ONCE = 6
TIMEOUT_S = 30.0
ATTEMPTS, REST_S = 3, 1.0  # as a rollout actor has them
SNAPSHOT_SHARE, TAKE_OVER_SHARE, NETWORK_SHARE = 0.1, 0.2, 0.05


async def live(factory: DockerSandboxes, episode: str, rng: random.Random) -> None:
    """One life cycle, from wherever an earlier owner left it."""
    sandbox = await factory.adopt(episode)
    limits = WITH_NETWORK if rng.random() < NETWORK_SHARE else LIMITS
    if sandbox is None:
        sandbox = await factory.create(episode, 1, IMAGE, limits)
    await sandbox.write("file", episode.encode())
    await sandbox.exec("sleep 3600 & echo $RANDOM > number; export A=1", timeout_s=TIMEOUT_S)
    if rng.random() < SNAPSHOT_SHARE:
        image = await sandbox.snapshot("soak")
        await sandbox.close()
        sandbox = await factory.create(episode, 2, image, limits)
    if rng.random() < TAKE_OVER_SHARE:
        await sandbox.release()
        sandbox = await factory.adopt(episode)
    result = await sandbox.exec("cat file; head -c 50000 /dev/zero", timeout_s=TIMEOUT_S)
    assert result.output.startswith(episode), result
    await sandbox.close()
    await factory.forget_snapshots(episode)


async def main() -> None:
    run, episodes, warm, seed = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
    factory, rng, me = DockerSandboxes(run, warm=warm), random.Random(seed), psutil.Process()
    queue = iter(episodes)

    async def slot() -> None:
        for episode in queue:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await live(factory, episode, rng)
                    break
                except InfrastructureFailure as failure:  # what the last owner asked for may be under way still
                    print(f"{episode}, attempt {attempt}: {failure}", file=sys.stderr)
                    if attempt == ATTEMPTS:
                        raise
                    await asyncio.sleep(REST_S)
            print("ended", episode, me.memory_info().rss, flush=True)

    await asyncio.gather(*(slot() for _ in range(AT_ONCE)))
    await factory.close()


if __name__ == "__main__":
    asyncio.run(main())
