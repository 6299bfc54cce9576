"""`python -m klong_rl.status` on real run directories: up, down, coming and going, and none at all."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.launch import run_id
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict
from klong_rl.windows import split

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60


def status(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "klong_rl.status", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ | {"COLUMNS": "110"}
    )


def cells(output: str, name: str) -> list[str]:
    """The cells of the rows of this name, one after the other."""
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in output.splitlines()]
    return [cell for row in rows if row[0].split(" (")[0] == name for cell in row[1:]]


async def fill(server: EmbeddedRedis, run_dir: Path) -> None:
    """Two queued episodes, one running, one leased, one dropped, one sealed; policy version 3."""
    async with await Buffer.connect(BufferAddress(server.url, run_id(run_dir))) as buffer:
        task = Task(id="relay/train/0", family="relay", instruction="Follow.", image="none")
        for i in range(6):
            spec = EpisodeSpec(
                id=f"e{i}", group=f"g{i}", group_size=1, stage=1, purpose="train", task=task, timeout_s=9, max_turns=4
            )
            await buffer.admit(spec)
        for _ in range(3):
            await buffer.publish_version()
        claims = [await buffer.claim("actor") for _ in range(4)]
        prefix = np.arange(7, dtype=np.int32)
        turn = Turn(
            index=0, context_start=0, action_A=np.array([1, 2], np.int32), logprobs_A=np.zeros(2, np.float32),
            versions=((2, 2),), observation_O=np.zeros(0, np.int32),
        )  # fmt: skip
        await buffer.append("e0", 1, Segment(episode="e0", epoch=1, seq=0, turns=(turn,), prefix_P=prefix))
        for episode in ("e0", "e1"):
            await buffer.seal(episode, 1, Outcome(kind="submitted"))
        await buffer.verdict("e0", 1, Verdict(score=1.0))
        await buffer.close_group("g0", split(claims[0].spec, prefix, [turn], 1.0))
        assert await buffer.lease(4, 1, 0)
        await buffer.drop("e2", "image is gone", 1)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def assert_filled(output: str) -> None:
    assert [cells(output, state)[0] for state in ("queued", "running", "sealed", "judged", "dropped")] == list("21111")
    assert cells(output, "running")[1].endswith("s") and cells(output, "judged")[1] == "–"
    assert cells(output, "4") == ["1", "1", "9", "2", "1"], "the lease: groups, windows, tokens, oldest version, behind"
    assert cells(output, "image is gone") == ["1"]


async def test_a_run_that_is_up_is_read_from_its_redis(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        await fill(server, tmp_path)
        shown = status(f"run={tmp_path}")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "the Redis of the run" in shown.stdout
    assert_filled(shown.stdout)


@pytest.mark.parametrize("ended", ["stopped", "killed"])
async def test_a_run_that_is_down_is_read_from_a_copy_and_not_touched(tmp_path, ended):
    server = EmbeddedRedis(tmp_path)
    server.start()
    await fill(server, tmp_path)
    if ended == "killed":
        time.sleep(2)  # the append-only file is synced each second
        os.kill(server.pid, signal.SIGKILL)
    server.stop()
    before = contents(tmp_path)
    scratch = tmp_path.parent / f"scratch-{ended}"
    scratch.mkdir()
    command = [sys.executable, "-m", "klong_rl.status", f"run={tmp_path}"]
    env = os.environ | {"COLUMNS": "110", "TMPDIR": str(scratch)}
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "the run is down" in shown.stdout
    assert_filled(shown.stdout)
    assert contents(tmp_path) == before
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, named", [(["run=/nowhere/at/all"], "/nowhere/at/all"), ([], "run=DIR"), (["run=docs"], "docs")]
)
def test_a_directory_without_a_run_is_one_line_and_exit_code_2(arguments, named):
    refused = status(*arguments)
    assert refused.returncode == 2 and refused.stdout == ""
    assert named in refused.stderr and len(refused.stderr.strip().splitlines()) == 1


@contextmanager
def watching(run_dir: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """`watch=true` on a terminal, and the terminal's other end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "klong_rl.status", f"run={run_dir}", "watch=true"]
    env = os.environ | {"COLUMNS": "110", "LINES": "60", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    os.set_blocking(ours, False)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_for(terminal: int, text: str) -> None:
    shown, until = "", time.monotonic() + DEADLINE_S
    while text not in shown:
        assert time.monotonic() < until, f"no {text!r} within {DEADLINE_S} s:\n{shown[-3000:]}"
        try:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.05)


async def test_watching_follows_a_run_that_ends_and_starts_again(tmp_path):
    server = EmbeddedRedis(tmp_path)
    server.start()
    await fill(server, tmp_path)
    with watching(tmp_path) as (process, terminal):
        wait_for(terminal, "the Redis of the run")
        server.stop()
        wait_for(terminal, "the run is down")
        server.start()
        wait_for(terminal, "the Redis of the run")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    server.stop()
