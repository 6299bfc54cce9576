"""The images that tasks name by a folder: built once, by content, and who is to blame where that fails."""

import asyncio
import multiprocessing
import time
import uuid

import docker
import pytest

from klong_rl.types import Limits
from sandboxes.base import InfrastructureFailure, TaskFailure
from sandboxes.docker import DockerSandboxes, preflight
from sandboxes.image import find

pytestmark = pytest.mark.integration

LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)
RECIPE = "FROM klong-sandbox\nCOPY given /opt/given\nUSER root\nRUN cp /opt/given /opt/made\nUSER agent\n"
NO_NETWORK = {"via": "none"}  # for the commands of a build


@pytest.fixture
async def factory():
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", egress=NO_NETWORK)
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture
def client():
    made = docker.APIClient()
    yield made
    made.close()


@pytest.fixture
def recipe(tmp_path, client):
    """A folder whose content no other test has; its image is removed at the end."""
    (tmp_path / "Dockerfile").write_text(RECIPE)
    (tmp_path / "given").write_text(uuid.uuid4().hex)
    yield tmp_path
    if tag := find(client, tmp_path):
        client.remove_image(tag, force=True)


async def test_a_folder_is_built_and_its_sandbox_works(factory, recipe, client):
    assert find(client, recipe) is None
    await factory.prepare(f"dockerfile:{recipe}")
    tag = find(client, recipe)
    assert tag.startswith("klong-image:")
    sandbox = await factory.create("e", 1, f"dockerfile:{recipe}", LIMITS)
    assert (await sandbox.exec("cat /opt/made", timeout_s=20)).output == (recipe / "given").read_text()
    assert client.inspect_container(sandbox.name)["Config"]["Image"] == tag


async def test_a_folder_is_placed_as_any_other_image_where_hosts_are_bounded(recipe):
    factory = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", egress=NO_NETWORK, per_host=1000)
    try:
        sandbox = await factory.create("e", 1, f"dockerfile:{recipe}", LIMITS)
        assert (await sandbox.exec("cat /opt/made", timeout_s=20)).output == (recipe / "given").read_text()
    finally:
        await factory.reap(keep=set())
        await factory.close()


async def test_a_folder_that_cant_be_read_is_no_fault_of_anyone_s_program(factory, recipe):
    (recipe / ".dockerignore").write_bytes(b"\xff\n")
    with pytest.raises(InfrastructureFailure, match="can't be packed for its build"):
        await factory.prepare(f"dockerfile:{recipe}")
    (recipe / ".dockerignore").unlink()


def build_in_a_process(url, barrier, answers):
    async def main():
        factory = DockerSandboxes("test", egress=NO_NETWORK)
        barrier.wait()
        await asyncio.gather(*(factory.prepare(url) for _ in range(3)))
        await factory.close()

    asyncio.run(main())
    answers.put("done")


def test_it_is_built_once_however_many_ask_in_however_many_processes(recipe, client):
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    began = int(time.time())
    asks = [spawn.Process(target=build_in_a_process, args=(f"dockerfile:{recipe}", barrier, answers)) for _ in range(2)]
    for ask in asks:
        ask.start()
    for ask in asks:
        ask.join(120)
        assert ask.exitcode == 0
    tag = find(client, recipe)
    events = client.events(since=began, until=int(time.time()) + 1, filters={"event": "tag"}, decode=True)
    assert sum(event["Actor"]["Attributes"]["name"] == tag for event in events) == 1


async def test_the_same_content_is_the_same_image_and_another_content_another(
    factory, recipe, client, tmp_path_factory
):
    await factory.prepare(f"dockerfile:{recipe}")
    copy = tmp_path_factory.mktemp("copy")
    for name in ("given", "Dockerfile"):
        (copy / name).write_bytes((recipe / name).read_bytes())
    assert find(client, copy) == find(client, recipe)
    (copy / ".dockerignore").write_text("# notes\nnotes\n")
    ignoring = find(client, copy)
    (copy / "notes").write_text("anything")
    assert find(client, copy) == ignoring
    (copy / "given").chmod(0o755)
    assert find(client, copy) is None


@pytest.mark.parametrize(
    ("dockerfile", "says"),
    [
        ("FROM klong-sandbox\nRUN echo to the log; exit 3\n", "(?s)to the log.*returned a non-zero code: 3"),
        ("FROM klong-sandbox\nCOPY absent /\n", "COPY failed.*absent"),
        ("FRM klong-sandbox\n", "unknown instruction: FRM"),
        ("FROM scratch\nCOPY Dockerfile /\n", "needs sleep"),
    ],
)
async def test_a_dockerfile_that_is_broken_is_the_tasks_failure(factory, tmp_path, client, dockerfile, says):
    (tmp_path / "Dockerfile").write_text(dockerfile)
    with pytest.raises(TaskFailure, match=says):
        await factory.create("e", 1, f"dockerfile:{tmp_path}", LIMITS)
    if tag := find(client, tmp_path):
        client.remove_image(tag)


async def test_a_build_that_was_given_up_is_there_for_the_next_one_who_asks(factory, recipe):
    (recipe / "Dockerfile").write_text(RECIPE.replace("RUN ", "RUN sleep 2; "))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await factory.prepare(f"dockerfile:{recipe}")
    await factory.prepare(f"dockerfile:{recipe}")


async def test_an_image_that_is_removed_is_made_again(factory, recipe, client):
    await factory.prepare(f"dockerfile:{recipe}")
    client.remove_image(find(client, recipe))
    with pytest.raises(InfrastructureFailure, match="has no image"):
        await factory.create("e", 1, f"dockerfile:{recipe}", LIMITS)
    await factory.create("e", 1, f"dockerfile:{recipe}", LIMITS)


async def test_an_image_from_no_files_needs_a_shell_of_its_own(factory, tmp_path, client):
    """FROM scratch: the files of an image that works, and nothing of its settings."""
    holder = client.create_container("klong-sandbox", "true")["Id"]
    with (tmp_path / "root.tar").open("wb") as file:
        file.writelines(client.export(holder))
    client.remove_container(holder)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
    try:
        sandbox = await factory.create("e", 1, f"dockerfile:{tmp_path}", LIMITS)
        assert (await sandbox.exec("pwd; id -un", timeout_s=20)).output == "/work\nagent\n"
        await sandbox.close()
    finally:
        client.remove_image(find(client, tmp_path), force=True)


async def test_what_is_no_folder_is_the_tasks_failure_at_once(tmp_path):
    for image, says in (("dockerfile:here", "absolute path"), (f"dockerfile:{tmp_path}", "has no Dockerfile")):
        with pytest.raises(TaskFailure, match=says):
            await preflight(image)


async def test_a_runtime_that_the_daemon_lacks_is_named_with_those_it_has():
    await preflight("klong-sandbox", runtime="runc")
    with pytest.raises(InfrastructureFailure, match="no runtime 'runsc', but .*runc.*sandbox.runtime="):
        await preflight("klong-sandbox", runtime="runsc")


async def test_a_runtime_reaches_the_container(client):
    factory = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}", runtime="runc")
    sandbox = await factory.create("e", 1, "klong-sandbox", LIMITS)
    assert client.inspect_container(sandbox.name)["HostConfig"]["Runtime"] == "runc"
    await factory.reap(keep=set())
    await factory.close()
