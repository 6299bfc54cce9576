"""Hostile and clumsy behaviours in real containers: each ends as an observation, and hurts nobody else.

All that are selected begin together, as many at a time as the host bears; each test then looks at its own.
"""

import asyncio
import os
import resource
import time
import uuid
from pathlib import Path

import pytest
import pytest_asyncio

from sandboxes.docker import DockerSandboxes
from tests.hostile.behaviour import Bystander, play
from tests.hostile.host import HOST
from tests.hostile.output import OUTPUT
from tests.hostile.processes import PROCESSES
from tests.hostile.resources import RESOURCES
from tests.hostile.shell import SHELL

# A minute and more.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

AT_ONCE = 8
MEMORY_MB = 64  # that this process may grow by, whatever is thrown at it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(request):
    """Behaviour -> the task that plays it."""
    factory = DockerSandboxes(f"hostile-{uuid.uuid4().hex[:8]}")
    turn = asyncio.Semaphore(AT_ONCE)
    bystander = await Bystander.begin(factory)

    async def wait_and_play(behaviour):
        async with turn:
            return await play(factory, bystander, behaviour)

    selected = [item.callspec.params["behaviour"] for item in request.session.items if item.path == request.path]
    tasks = {behaviour: asyncio.create_task(wait_and_play(behaviour)) for behaviour in selected}
    clocks, memory_kb = time.time() - time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield tasks
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await factory.reap(keep=set())
    await factory.close()
    assert abs(time.time() - time.monotonic() - clocks) < 1, "the host's clock was changed"
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kb) >> 10
    assert grown_mb < MEMORY_MB, f"this process grew by {grown_mb} MB"


@pytest.mark.parametrize(
    "behaviour", [*RESOURCES, *OUTPUT, *PROCESSES, *HOST, *SHELL], ids=lambda behaviour: behaviour.name
)
async def test_behaviour(played, behaviour):
    container = await played[behaviour]
    assert processes_of(container) == [], "processes are left on the host"


def processes_of(container: str) -> list[str]:
    """Process ids of this host that are in the control groups of a container."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if container in Path(f"/proc/{pid}/cgroup").read_text():
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended by itself
    return found
