"""The pure parts of a shell sandbox: paths that may be written, the upload, the supervisor's text."""

import io
import tarfile

import pytest

from sandboxes.command import pack
from sandboxes.supervisor import Paths, supervisor_script


def test_pack_keeps_names_and_bytes():
    files = {"a/b/c.txt": b"\0\xff", "./d": b""}
    with tarfile.open(fileobj=io.BytesIO(pack(files))) as tar:
        assert {entry.name: tar.extractfile(entry).read() for entry in tar} == {"a/b/c.txt": b"\0\xff", "d": b""}


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "", ".", "a\0b"])
def test_pack_refuses_a_path_outside(path):
    with pytest.raises(ValueError, match="not inside the working directory"):
        pack({path: b""})


@pytest.mark.parametrize("path", ["/tmp/a b", "/tmp/$x", "/tmp/'x"])
def test_a_path_that_a_shell_would_read_is_refused(path):
    with pytest.raises(ValueError, match="letters, digits"):
        supervisor_script(Paths("/work", path, "/run"), alone=True)
