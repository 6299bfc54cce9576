"""What a snapshot keeps and how long it is kept, on real Docker containers and on bare processes."""

import asyncio
import uuid

import pytest

from klong_rl.failures import InfrastructureFailure
from tests.in_sandbox import IMAGE, LIMITS, run

pytestmark = pytest.mark.integration


async def test_a_snapshot_starts_another_sandbox_where_this_one_was(factory, sandbox):
    await run(sandbox, "mkdir here && cd here && export A=kept && echo text > file; sleep 4330 &")
    image = await sandbox.snapshot(tag := uuid.uuid4().hex)
    await run(sandbox, "echo later > file")
    other = await factory.create("episode/2", 1, image, LIMITS)
    assert (await run(other, 'basename "$PWD"; echo "$A"; cat file; ls')).output == "here\nkept\ntext\nfile\n"
    assert (await run(sandbox, "cat file")).output == "later\n"
    again = await sandbox.snapshot(tag)  # as a repeated call would
    newest = await factory.create("episode/2", 2, again, LIMITS)
    assert (await run(newest, "cat file")).output == "later\n"


async def test_a_snapshot_waits_for_the_command_of_its_owner(factory, sandbox):
    running = asyncio.create_task(run(sandbox, "echo begun > file; sleep 1; echo ended > file"))
    await asyncio.sleep(0.3)
    image = await sandbox.snapshot(uuid.uuid4().hex)
    assert (await running).exit_code == 0
    assert (await run(await factory.create("other", 1, image, LIMITS), "cat file")).output == "ended\n"


async def test_a_snapshot_of_a_cancelled_command_that_still_runs_is_one_moment_of_it(factory, sandbox):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run(sandbox, "while :; do mkdir d; touch $(seq -f d/%g 500); rm -r d; done", 60)
    for index in range(3):
        image = await sandbox.snapshot(uuid.uuid4().hex)
        other = await factory.create(f"other-{index}", 1, image, LIMITS)
        assert (await run(other, "ls d 2>/dev/null | wc -l")).exit_code == 0


async def test_snapshots_are_removed_by_episode_and_with_what_is_reaped(factory, sandbox):
    await sandbox.snapshot(uuid.uuid4().hex)
    await sandbox.close()
    made = await factory.create("other", 1, IMAGE, LIMITS)
    first = await made.snapshot(uuid.uuid4().hex)
    restored = await factory.create("other", 2, first, LIMITS)
    await run(restored, "echo text > file")
    second = await restored.snapshot(uuid.uuid4().hex)  # in Docker, a child of the first
    await restored.close()
    assert await factory.reap(keep={"other", "episode/1"}) == []
    assert await factory.forget_snapshots("never-made") == 0
    assert await factory.reap(keep={"other"}) == ["episode/1"]
    restored = await factory.create("other", 3, second, LIMITS)
    assert (await run(restored, "cat file")).output == "text\n"
    await factory.reap(keep=set())
    for image in (first, second):
        with pytest.raises(InfrastructureFailure, match=image):
            await factory.create("other", 4, image, LIMITS)


async def test_the_snapshots_of_an_episode_are_forgotten(factory, sandbox):
    images = [await sandbox.snapshot(uuid.uuid4().hex) for _ in range(2)]
    other = await factory.create("other", 1, images[0], LIMITS)
    kept = await other.snapshot(uuid.uuid4().hex)
    await other.close()
    await sandbox.close()
    assert await factory.forget_snapshots("other", keep=kept) == 0
    assert await factory.forget_snapshots("other") == 1
    assert await factory.forget_snapshots("episode/1", keep=images[1]) == 1
    await (await factory.create("again", 1, images[1], LIMITS)).close()
    assert await factory.forget_snapshots("episode/1") == 1
    assert await factory.forget_snapshots("episode/1") == 0
    for image in (*images, kept):
        with pytest.raises(InfrastructureFailure, match=image):
            await factory.create("again", 1, image, LIMITS)
