"""What every sandbox does, on real Docker containers and on bare processes: the same tests for both."""

import asyncio
import sys
import time
import uuid

import pytest

from klong_rl.failures import InfrastructureFailure
from klong_rl.types import Limits
from sandboxes.base import Adopted
from sandboxes.docker import DockerSandboxes
from sandboxes.process import ProcessSandboxes

pytestmark = pytest.mark.integration

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=256, pids=64)


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


async def run(sandbox, command, timeout_s=10.0, **options):
    return await sandbox.exec(command, timeout_s=timeout_s, **options)


async def alive(sandbox, marker):
    """How many processes have `marker` as their whole command line."""
    return int((await run(sandbox, f"ps -eo args= | grep -cx '{marker}'")).output)


async def test_output_is_both_streams_in_order_and_the_exit_code_is_the_commands(sandbox):
    result = await run(sandbox, "echo one; echo two >&2; echo three; (exit 7)")
    assert (result.output, result.exit_code) == ("one\ntwo\nthree\n", 7)
    assert not result.timed_out and not result.truncated


async def test_directory_and_exported_environment_carry_over(sandbox):
    await run(sandbox, "mkdir -p 'd e' && cd 'd e' && export A=\"it's\n$(printf '\\\\') b\"; local_only=1")
    result = await run(sandbox, 'basename "$PWD"; echo "$A"; echo "[$local_only]"')
    assert result.output == "d e\nit's\n\\ b\n[]\n"


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [("exit 3", 3), ("exec true", 0), ("kill -9 $BASHPID", 137), ("kill -9 $$", None), ("echo 'unfinished", 2)],
)
async def test_a_command_that_ends_its_shell_is_reported_and_the_session_goes_on(sandbox, command, exit_code):
    await run(sandbox, "mkdir here && cd here && export A=kept")
    assert (await run(sandbox, command)).exit_code == exit_code
    assert (await run(sandbox, 'basename "$PWD"; echo $A')).output == "here\nkept\n"


async def test_state_is_saved_by_a_command_that_exits(sandbox):
    await run(sandbox, "cd /; export A=1; exit 5")
    assert (await run(sandbox, "pwd; echo $A")).output == "/\n1\n"


@pytest.mark.parametrize(
    "command",
    [
        "printf '%s\\n' \"a'b\" '\"' '`x`' '$HOME' '\\'",
        "cat <<'EOF'\na ' \" $x `y`\nEOF",
        "cat <<EOF\nnever finished",
        "echo $((1 +",
        "if true; then",
        "}",
        ")",
        "\x1e0123456789abcdef 0\x1e",
        "# only a comment",
        "",
        "é \udcff \x00 ∆",
        "klong_end x 0; exec 1>&- 2>&-",
    ],
)
async def test_no_text_wedges_the_shell(sandbox, command):
    await run(sandbox, command)
    assert (await run(sandbox, "echo still here")).output == "still here\n"


async def test_messages_name_the_commands_own_lines(sandbox):
    assert "line 2: no-such-program:" in (await run(sandbox, "true\nno-such-program")).output


async def test_a_long_command_is_run_whole(sandbox):
    text = "x" * 300_000
    assert (await run(sandbox, f"a='{text}'; echo ${{#a}}")).output == "300000\n"


async def test_streams_are_bytes_and_kept_apart_where_asked(sandbox):
    every_byte = bytes(range(256)) * 5000
    result = await run(
        sandbox, "cat; printf '\\377\\0' >&2; exit 3", stdin=every_byte, apart=True, output_limit=1 << 21
    )
    assert (result.stdout, result.stderr, result.exit_code) == (every_byte, b"\xff\0", 3)
    result = await run(sandbox, "seq 1000 >&2; echo short", apart=True, output_limit=100)
    assert result.truncated and result.stdout == b"short\n" and len(result.stderr) < 150


async def test_a_variable_or_a_directory_of_one_command_is_not_the_sessions(sandbox):
    await run(sandbox, "mkdir d; export A=session")
    value = "it's\n$HOME `x`"
    result = await run(sandbox, 'printf %s "$A"; basename "$PWD"; export B=1', env={"A": value}, cwd="d")
    assert result.output == f"{value}d\n"
    assert (await run(sandbox, 'echo "$A[$B]"; basename "$PWD"')).output == "session[]\nwork\n"
    lost = await run(sandbox, "echo not reached", cwd="absent")
    assert lost.exit_code != 0 and "absent" in lost.output and "not reached" not in lost.output
    with pytest.raises(ValueError, match="'a b' is no name"):
        await run(sandbox, "true", env={"a b": ""})


async def test_stdin_is_empty(sandbox):
    result = await run(sandbox, "cat; read x; echo $?", timeout_s=3)
    assert (result.output, result.timed_out) == ("1\n", False)


async def test_a_timeout_kills_the_process_group_and_keeps_the_session(sandbox):
    await run(sandbox, "mkdir here && cd here && export A=kept")
    started = time.monotonic()
    result = await run(sandbox, "trap '' TERM INT HUP; sleep 4321 & echo begun; sleep 4321; sleep 4321", timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert result.timed_out and result.exit_code is None
    assert result.output.startswith("begun\n")
    assert await alive(sandbox, "sleep 4321") == 0
    assert (await run(sandbox, 'basename "$PWD"; echo $A')).output == "here\nkept\n"


async def test_a_background_process_outlives_its_command_and_pkill_finds_it_alone(sandbox):
    assert (await run(sandbox, "sleep 4322 & echo ready")).output == "ready\n"
    assert await alive(sandbox, "sleep 4322") == 1
    assert (await run(sandbox, "pkill -f 'sleep 4322'; echo $?")).output == "0\n"
    assert await alive(sandbox, "sleep 4322") == 0


async def test_a_flood_is_capped_at_its_head_and_tail(sandbox):
    result = await run(sandbox, "echo first; yes", timeout_s=1, output_limit=1000)
    assert result.timed_out and result.truncated
    assert result.output.startswith("first\ny\n") and "bytes left out" in result.output
    assert len(result.output) < 1100
    result = await run(sandbox, "seq 100000; echo last", output_limit=1000)
    assert result.output.startswith("1\n2\n") and result.output.endswith("100000\nlast\n")


async def test_bytes_that_are_no_text_are_replaced(sandbox):
    result = await run(sandbox, "printf 'a\\377\\000b'")
    assert result.output == "a\ufffd\0b"


async def test_files_come_back_as_written(sandbox):
    files = {"a/b/c": bytes(range(256)), "empty": b"", "big": b"0123456789abcdef" * 200_000}
    await sandbox.write_many(files)
    for path, data in files.items():
        assert await sandbox.read(path, limit=1 << 23) == data
    assert await sandbox.read("big", limit=10) == b"0123456789"
    assert (await run(sandbox, "wc -c < big; ls -d a/b")).output == "3200000\na/b\n"


async def test_paths_are_relative_to_the_working_directory_wherever_the_shell_is(sandbox):
    await run(sandbox, "cd /")
    await sandbox.write("x", b"1")
    assert await sandbox.read("x") == b"1"


@pytest.mark.parametrize("path", ["absent", "a-directory", "a-pipe"])
async def test_what_is_no_regular_file_is_not_found(sandbox, path):
    await run(sandbox, "mkdir a-directory; mkfifo a-pipe")
    with pytest.raises(FileNotFoundError, match=path):
        await sandbox.read(path)


async def test_a_file_is_read_clean_while_the_background_prints(sandbox):
    data = bytes(range(256)) * 2000
    await sandbox.write("data", data)
    # Killed by its number: a pattern would reach this machine's other processes too.
    await run(sandbox, "(while :; do echo noise; done) & echo $! > noisy")
    for _ in range(5):
        assert await sandbox.read("data") == data
    assert "noise" in (await run(sandbox, "kill -9 $(cat noisy)")).output


async def test_sandboxes_run_side_by_side(factory):
    sandboxes = await asyncio.gather(*(factory.create(f"side-{i}", 1, IMAGE, LIMITS) for i in range(4)))
    started = time.monotonic()
    results = await asyncio.gather(*(run(s, f"echo {i}; sleep 1") for i, s in enumerate(sandboxes)))
    assert [result.output for result in results] == ["0\n", "1\n", "2\n", "3\n"]
    assert time.monotonic() - started < 3


async def test_a_cancelled_command_leaves_the_sandbox_usable_and_its_process_killed(sandbox):
    await run(sandbox, "export A=kept")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await run(sandbox, "sleep 4323", timeout_s=60)
    assert (await run(sandbox, "echo $A")).output == "kept\n"
    assert await alive(sandbox, "sleep 4323") == 0


async def test_the_agent_can_kill_the_supervising_shell_and_goes_on(sandbox):
    await run(sandbox, "mkdir here && cd here && export A=kept")
    result = await run(sandbox, "kill -9 $$; sleep 60")
    assert result.exit_code is None and "took its shell down" in result.output
    assert (await run(sandbox, 'basename "$PWD"; echo $A')).output == "here\nkept\n"


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
