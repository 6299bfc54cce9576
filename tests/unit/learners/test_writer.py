"""What a process that is forked to write does beside writing: it tells how it went, and holds nobody up."""

import multiprocessing
import os
import signal
import socket
import time

import pytest

from learners import writer

FORK = multiprocessing.get_context("fork")


def run(work) -> int:
    """`work` in a fork; its exit code."""
    process = FORK.Process(target=work)
    process.start()
    process.join(30)
    return process.exitcode


def test_what_was_written_is_written(tmp_path):
    write, check = writer.reported(lambda: (tmp_path / "file").write_text("x"))
    assert run(write) == 0
    check()
    assert (tmp_path / "file").read_text() == "x"


def test_a_failure_is_told_with_its_reason(capfd):
    def full():
        raise OSError(28, "No space left on device", "/runs/a/hf/model.safetensors")

    write, check = writer.reported(full)
    run(write)
    with pytest.raises(OSError, match="could not be written: OSError: .* No space left on device: '/runs/a/hf/model"):
        check()


def test_a_writer_that_was_killed_is_told():
    write, check = writer.reported(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert run(write) == -signal.SIGKILL
    with pytest.raises(OSError, match="its process ended before it was done"):
        check()


def test_a_peer_sees_the_end_of_a_rank_whose_writer_still_writes():
    ours, peers = socket.socketpair()
    process = FORK.Process(target=writer.in_fork(lambda: time.sleep(60)))
    process.start()
    ours.close()
    peers.settimeout(30)
    assert peers.recv(1) == b"", "closed: the writer has let go of its copy"
    process.kill()
    process.join()


def test_a_writer_ends_with_its_rank(tmp_path):
    def rank():
        process = FORK.Process(target=writer.in_fork(lambda: time.sleep(60)))
        process.start()
        (tmp_path / "pid").write_text(str(process.pid))
        time.sleep(0.5)  # until it has asked to be told
        os.kill(os.getpid(), signal.SIGKILL)

    run(rank)
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < until, f"process {pid} is alive"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Not gone, and not waiting to be reaped by whoever has come to be its parent."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
