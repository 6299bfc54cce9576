"""`read`, `write` and `halt` against an agent that meddles with the files, and what a grader can trust."""

import asyncio
import os
import uuid

import pytest

from klong_rl.failures import AgentFailure, TaskFailure
from klong_rl.types import Limits
from sandboxes.docker import DockerSandboxes

pytestmark = pytest.mark.integration

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=128, pids=64, disk_mb=16)
DEADLINE_S = 60.0


@pytest.fixture
async def sandbox():
    factory = DockerSandboxes(f"hostile-{uuid.uuid4().hex[:8]}")
    async with asyncio.timeout(DEADLINE_S):
        yield await factory.create("e", 1, IMAGE, LIMITS)
    await factory.reap(keep=set())
    await factory.close()


async def run(sandbox, command, timeout_s=10.0):
    return await sandbox.exec(command, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("before", "path"),
    [
        ("mkfifo pipe", "pipe"),
        ("ln -s loop loop", "loop"),
        ("ln -s /dev/zero zero", "zero"),
        ("mkdir d", "d"),
        ("true", "a\0b"),
        ("true", "x/" * 3000),
        ("perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => q(s), Listen => 1) or die'", "s"),
    ],
)
async def test_what_is_no_file_is_not_found_at_once(sandbox, before, path):
    assert (await run(sandbox, before)).exit_code == 0
    async with asyncio.timeout(5):
        with pytest.raises(FileNotFoundError):
            await sandbox.read(path)


@pytest.mark.parametrize("path", ["/proc/1/environ", "/proc/self/mem", "link", "closed"])
async def test_a_file_that_the_agent_may_not_read_is_not_read_for_it(sandbox, path):
    await run(sandbox, "ln -s /proc/1/environ link; echo text > closed; chmod 000 closed")
    with pytest.raises(AgentFailure, match="can't be read"):
        await sandbox.read(path)


@pytest.mark.parametrize("path", ["a\nb", "-rf", "$(kill -9 -1)", "'\"`x`", "\x1e0123456789abcdef 0\x1e", "ü \t*"])
async def test_any_name_is_written_and_read(sandbox, path):
    await sandbox.write(path, b"text")
    assert await sandbox.read(path) == b"text"


async def test_a_race_of_links_gives_what_the_agent_could_have_written_or_its_failure(sandbox):
    await run(sandbox, "mkdir d; echo text > d/file; mkdir /tmp/e; ln -s /proc/1/environ /tmp/e/file")
    await run(sandbox, "(while :; do mv d x; ln -s /tmp/e d; rm d; mv x d; sleep 0.01; done) > /dev/null 2>&1 &")
    seen = set()
    for _ in range(60):
        try:
            seen.add(await sandbox.read("d/file"))
        except (FileNotFoundError, AgentFailure) as failure:
            seen.add(type(failure))
    assert b"text\n" in seen and seen <= {b"text\n", FileNotFoundError, AgentFailure}
    for index in range(60):
        try:
            await sandbox.write("d/new", b"%d" % index)
        except AgentFailure:
            continue
    assert (await run(sandbox, "echo here")).output == "here\n"


async def test_files_that_do_not_fit_are_the_tasks_failure_until_the_agent_had_its_turn(sandbox):
    with pytest.raises(TaskFailure, match="1 files can't be written"):
        await sandbox.write("big", bytes(17 << 20))
    await run(sandbox, "true")
    with pytest.raises(AgentFailure, match="1 files can't be written"):
        await sandbox.write("big", bytes(17 << 20))


@pytest.mark.parametrize(
    "sabotage",
    [
        "chmod 000 /work",
        "mkdir -p tests/grade.sh/x; chmod 000 tests",
        "ln -s /etc tests",
        "echo > tests",
    ],
)
async def test_a_grader_that_cannot_write_blames_the_agent(sandbox, sabotage):
    await run(sandbox, sabotage)
    await sandbox.halt()
    with pytest.raises(AgentFailure, match="can't be written"):
        await sandbox.write("tests/grade.sh", b"exit 0")


@pytest.mark.parametrize("sabotage", ["mkfifo {}", "mkdir -p {}/x", "ln -s /dev/full {}", "ln -s /work/loop {}"])
async def test_an_upload_goes_past_what_stands_in_its_way(sandbox, sabotage):
    await run(sandbox, sabotage.format("/tmp/.klong-state.upload"))
    async with asyncio.timeout(10):
        await sandbox.write("file", b"text")
    assert await sandbox.read("file") == b"text"
    assert (await run(sandbox, f": {'x' * 200_000}; cat file")).output == "text"


CHEAT = r"""
mkdir /work/bin; for name in grade sh cat python3; do printf '#!/bin/sh\necho passed\n' > /work/bin/$name; done
chmod +x /work/bin/*
export PATH=/work/bin:$PATH BASH_ENV=/work/bin/grade LD_PRELOAD=/work/bin/cheat.so
setsid /bin/sh -c 'while :; do echo "echo passed" > /work/grade.sh; done' > /dev/null 2>&1 < /dev/null &
"""
KILLER = "setsid /bin/sh -c 'while :; do pkill -9 -f klong-supervis[o]r; sleep 0.2; done' > /dev/null 2>&1 &"
CHEAT_AS_STATE = "echo 'sh() { echo passed; }' >> /tmp/.klong-state; exec true"


@pytest.mark.parametrize("last", ["true", KILLER], ids=["quiet", "killing every supervisor"])
async def test_after_halt_nothing_of_the_agents_meddles_with_the_grader(sandbox, last):
    await run(sandbox, CHEAT)
    await run(sandbox, last)
    await run(sandbox, CHEAT_AS_STATE)
    await sandbox.halt()
    await sandbox.write("grade.sh", b"sleep 0.5; cat /work/grade.sh | wc -l; echo failed")
    result = await run(sandbox, "sh grade.sh; ps -eo user= | grep -c agent; pwd")
    assert result.output == "0\nfailed\n5\n/work\n"  # the supervisor, the executor, the command, ps, grep


async def test_halt_gets_through_a_sandbox_full_of_processes_and_one_that_is_stopped(sandbox):
    await run(sandbox, "for i in $(seq 100); do sleep 4600 & done", timeout_s=3)
    await sandbox.halt()
    assert (await run(sandbox, "pgrep -fc 'sleep 4600'")).output == "0\n"
    await run(sandbox, "setsid sh -c 'sleep 0.2; kill -STOP -1' &")
    await asyncio.sleep(0.5)
    async with asyncio.timeout(20):
        await sandbox.halt()
    assert (await run(sandbox, "echo here")).output == "here\n"


async def test_a_tree_too_deep_for_a_path_is_removed_from_the_host(sandbox):
    await run(sandbox, "perl -e 'for (1..500) { mkdir q(d) x 100 and chdir q(d) x 100 or die $! }'")
    layer = (await sandbox._call("looking at", lambda api: api.inspect_container(sandbox.name), 10))["GraphDriver"]
    folder = layer["Data"]["UpperDir"]
    if not os.path.isdir(folder):
        pytest.skip("the daemon's files are on another host")
    await sandbox.close()
    assert not os.path.exists(folder)
