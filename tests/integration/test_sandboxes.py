"""What commands do in every sandbox, on real Docker containers and on bare processes: the same tests for both."""

import asyncio
import time

import pytest

from tests.in_sandbox import IMAGE, LIMITS, alive, run

pytestmark = pytest.mark.integration


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


async def test_any_variable_carries_over_from_command_to_command(sandbox):
    """Also such as the shell itself heeds: those that split words, time out its reads, change its mode or language."""
    odd = [
        "IFS=0123456789",
        "TMOUT=1",
        "POSIXLY_CORRECT=1",
        "LC_ALL=C",
        "BASH_ENV=/nowhere",
        "A='$(exit)`'\\\"",
        "B=$'a\\nb'",
    ]
    await run(sandbox, "cd /tmp; export " + " ".join(odd))
    seen = 'pwd; printf "%s|" "$IFS" "$TMOUT" "$POSIXLY_CORRECT" "$LC_ALL" "$BASH_ENV" "$A" "$B"'
    await asyncio.sleep(1.1)
    for _ in range(3):
        assert (await run(sandbox, seen)).output == '/tmp\n0123456789|1|1|C|/nowhere|$(exit)`"|a\nb|'
    await run(sandbox, "unset ${!L*} IFS TMOUT POSIXLY_CORRECT BASH_ENV A B; cd /")
    for _ in range(2):
        assert (await run(sandbox, "pwd; echo $A$B")).output == "/\n\n"


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
