"""The way past the daemon: only into the pipe of the very shell that was opened, and it never keeps that open."""

import os
import subprocess

import pytest

from sandboxes.shortcut import ATOMIC_BYTES, Shortcut

TOKEN = "00112233"


@pytest.fixture
def reader():
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"klong_token": TOKEN, "PATH": os.environ["PATH"]}
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def shortcut(reader):
    made = Shortcut.find(reader.pid, TOKEN)
    yield made
    made.close()


def test_what_is_put_is_read_in_its_place(reader, shortcut):
    reader.stdin.write(b"first ")
    reader.stdin.flush()
    assert shortcut.put(b"second ")
    assert reader.stdout.read(13) == b"first second "


def test_the_reader_ends_with_its_writer_and_then_nothing_can_be_put(reader, shortcut):
    reader.stdin.close()
    assert reader.wait(5) == 0
    with pytest.raises(OSError):
        shortcut.put(b"late")


def test_what_might_not_be_written_whole_is_not_written(reader, shortcut):
    assert not shortcut.put(b"x" * (ATOMIC_BYTES + 1))
    reader.send_signal(19)  # SIGSTOP: nobody makes room
    while shortcut.put(b"x" * ATOMIC_BYTES):
        pass
    assert not shortcut.put(b"y" * ATOMIC_BYTES)


def test_another_process_is_not_taken_for_the_shell(reader):
    assert Shortcut.find(reader.pid, "another") is None
    reader.kill()
    reader.wait(5)
    assert Shortcut.find(reader.pid, TOKEN) is None


def test_what_is_no_pipe_is_not_written_to(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with file.open() as stdin, subprocess.Popen(["sleep", "9"], stdin=stdin, env={"klong_token": TOKEN}) as process:
        assert Shortcut.find(process.pid, TOKEN) is None
        process.kill()
