"""Sandboxes on real Docker containers and on bare processes: a test that takes these runs on both.

A module whose tests need one kind has fixtures of its own under the same names.
"""

import uuid

import pytest

from sandboxes.docker import DockerSandboxes
from sandboxes.process import ProcessSandboxes
from tests.in_sandbox import IMAGE, LIMITS


@pytest.fixture(params=["docker", "process"])
async def factory(request, tmp_path):
    run = f"test-{uuid.uuid4().hex[:8]}"
    if request.param == "docker":
        made = DockerSandboxes(run)
    else:
        made = ProcessSandboxes(run, root=str(tmp_path), allow_unisolated=True)
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture
async def sandbox(factory):
    return await factory.create("episode/1", 1, IMAGE, LIMITS)
