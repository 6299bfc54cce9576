"""The append-only file is read as Redis wrote it, and a history that is not whole is refused."""

import pytest

from tests.chaos.aof import MANIFEST, Corrupt, Rewritten, increment, transactions

DATA = (
    b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n#TS:1700000000\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n1\r\n2\r\n"
    b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nDEL\r\n$1\r\na\r\n*2\r\n$4\r\nINCR\r\n$1\r\nb\r\n*1\r\n$4\r\nEXEC\r\n"
)
WHOLE = [[(b"SET", b"a", b"1\r\n2")], [(b"DEL", b"a"), (b"INCR", b"b")]]


def read(path, data: bytes):
    path.write_bytes(data)
    return list(transactions(path))


def test_what_took_effect_together_is_one_transaction(tmp_path):
    found = read(tmp_path / "aof", DATA)
    assert [transaction.commands for transaction in found] == WHOLE
    assert found[-1].position == len(DATA)


def test_a_tail_that_a_crash_cut_anywhere_is_left_out(tmp_path):
    for end in range(len(DATA)):
        found = [transaction.commands for transaction in read(tmp_path / "aof", DATA[:end])]
        assert found == WHOLE[: len(found)] and len(found) < len(WHOLE)


def test_what_is_no_append_only_file_is_refused(tmp_path):
    with pytest.raises(Corrupt, match="byte 0"):
        read(tmp_path / "aof", b"REDIS0011 and so on\r\n")


@pytest.mark.parametrize(
    "manifest",
    [
        "file a.2.base.rdb seq 2 type b\nfile a.2.incr.aof seq 2 type i\n",
        "file a.1.base.rdb seq 1 type b\nfile a.1.incr.aof seq 1 type i\nfile a.2.incr.aof seq 2 type i\n",
    ],
)
def test_a_file_that_was_rewritten_is_refused(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(Rewritten, match="64 MB"):
        increment(tmp_path)
