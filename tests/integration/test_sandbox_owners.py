"""Who owns a sandbox, from its creation to its removal, on real Docker containers and on bare processes."""

import asyncio
import sys
import uuid

import pytest

from klong_rl.failures import InfrastructureFailure
from sandboxes.base import Adopted
from sandboxes.docker import DockerSandboxes
from tests.in_sandbox import IMAGE, LIMITS, alive, run

pytestmark = pytest.mark.integration


async def test_an_earlier_owner_is_shut_out(factory, sandbox):
    await run(sandbox, "echo 1 > file")
    adopted = await factory.adopt("episode/1")
    for attempt in (
        run(sandbox, "echo 2 > file"),
        sandbox.write("file", b"3\n"),
        sandbox.read("file"),
        sandbox.snapshot(uuid.uuid4().hex),
        run(sandbox, "echo 4 > file"),
    ):
        with pytest.raises(Adopted, match="another owner"):
            await attempt
    await sandbox.close()
    assert (await run(adopted, "cat file")).output == "1\n"
    assert await factory.forget_snapshots("episode/1") == 0


EARLIER_OWNER = """
import asyncio, sys
from klong_rl.types import Limits
from sandboxes.docker import DockerSandboxes
from sandboxes.process import ProcessSandboxes

async def main():
    kind, run, *root = sys.argv[1:]
    factory = DockerSandboxes(run) if kind == "docker" else ProcessSandboxes(run, root=root[0], allow_unisolated=True)
    sandbox = await factory.create("mine", 1, "klong-sandbox", Limits(memory_mb=256, pids=64))
    running = asyncio.create_task(sandbox.exec("sleep 2; echo late >> file", timeout_s=60))
    await asyncio.sleep(0.5)
    print("running", flush=True)
    input()
    calls = [running, *(sandbox.exec("echo late >> file", timeout_s=5) for _ in range(3))]
    for failure in await asyncio.gather(*calls, return_exceptions=True):
        print(type(failure).__name__, flush=True)

asyncio.run(main())
"""


async def test_an_owner_in_another_process_is_shut_out_in_the_middle_of_a_command(factory, tmp_path):
    kind = "docker" if isinstance(factory, DockerSandboxes) else "process"
    run_id = factory.run if kind == "docker" else factory.folder.name
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-c", EARLIER_OWNER, kind, run_id, str(tmp_path)]
    other = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    async with asyncio.timeout(60):
        assert await other.stdout.readline() == b"running\n"
        adopted = await factory.adopt("mine")
        answers, _ = await other.communicate(b"\n")
    assert answers.split() == [b"Adopted"] * 4
    await asyncio.sleep(2)
    assert (await run(adopted, "cat file")).exit_code == 1


async def test_two_that_adopt_at_once_leave_one_owner(factory, sandbox):
    for _ in range(3):
        results = await asyncio.gather(*(factory.adopt("episode/1") for _ in range(2)), return_exceptions=True)
        owners = []
        for result in results:
            assert isinstance(result, (Adopted, type(sandbox)))
            if not isinstance(result, Adopted):
                owners.append(await asyncio.gather(run(result, "echo owner"), return_exceptions=True))
        answers = [answer for [answer] in owners]
        assert sum(not isinstance(answer, Adopted) for answer in answers) == 1


async def test_another_owner_adopts_the_sandbox_and_ends_its_command(factory, sandbox):
    await run(sandbox, "export A=kept; echo 1 > file")
    running = asyncio.create_task(run(sandbox, "sleep 4324", timeout_s=60))
    await asyncio.sleep(0.5)
    adopted = await factory.adopt("episode/1")
    assert await alive(adopted, "sleep 4324") == 0
    assert (await run(adopted, "echo $A; cat file")).output == "kept\n1\n"
    with pytest.raises(Adopted, match="another owner"):
        await running
    assert await factory.adopt("never-made") is None


async def test_a_released_sandbox_is_there_to_adopt(factory, sandbox):
    await run(sandbox, "cd /; export A=kept; sleep 4325 & echo 1")
    await sandbox.release()
    await sandbox.release()
    adopted = await factory.adopt("episode/1")
    assert (await run(adopted, "pwd; echo $A")).output == "/\nkept\n"
    assert await alive(adopted, "sleep 4325") == 1


async def test_halt_ends_all_that_runs_and_forgets_the_environment_but_no_file(sandbox):
    await run(sandbox, "cd /; export A=kept; echo 2 > ~/file; sleep 4327 & setsid sleep 4327 &")
    assert await alive(sandbox, "sleep 4327") == 2
    await sandbox.halt()
    assert await alive(sandbox, "sleep 4327") == 0
    assert (await run(sandbox, 'basename "$PWD"; echo "[$A]"; cat file')).output == "work\n[]\n2\n"


async def test_closing_ends_the_command_that_runs(sandbox):
    running = asyncio.create_task(run(sandbox, "sleep 4326", timeout_s=60))
    await asyncio.sleep(0.3)
    await sandbox.close()
    async with asyncio.timeout(10):
        with pytest.raises(InfrastructureFailure, match="closed"):
            await running


async def test_reap_removes_what_is_not_kept_and_close_is_idempotent(factory, sandbox):
    kept = await factory.create("kept", 1, IMAGE, LIMITS)
    assert await factory.reap(keep={"kept"}) == ["episode/1"]
    assert await factory.adopt("episode/1") is None
    assert (await run(kept, "echo here")).output == "here\n"
    await kept.close()
    await kept.close()
    assert await factory.reap(keep=set()) == []
