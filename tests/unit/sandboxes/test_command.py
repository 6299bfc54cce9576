"""A command as an executor takes it: whatever its text, a real shell gets it back, byte for byte."""

import subprocess

import pytest

from sandboxes.command import BLOCK, message

NONCE = "0123456789abcdef"
TEXTS = [
    "true",
    "",
    "echo 'it''s' \"$HOME\" `x` \\",
    "two\nlines\n",
    "\x1e0123456789abcdef 0\x1e",
    "ünï ☃ \U0001f600 'quoted' \\n",
    "x" * (BLOCK - len(f"klong_more=0 klong_timeout=1.500 klong_nonce={NONCE} klong_command=")),
    "y" * 5000,
    "\udcff",  # no UTF-8
]

# What the executor's child does with what it reads, and then the executor itself.
BASH = (
    f'IFS= read -r -N {BLOCK} line; eval "$line"; '
    '[ $klong_more = 0 ] || { IFS= read -r -N $klong_more line; eval "$line"; }; '
    f'IFS= read -r -N {BLOCK} line; printf "%s|%s|" "$klong_nonce" "$klong_timeout"; eval "$line"; '
    'printf "%s|%s" "$klong_nonce" "$klong_command"; cat'
)
SH = (
    "klong_nl=$(printf '\\nx'); klong_nl=${klong_nl%x}; IFS= read -r line; eval \"$line\"; IFS= read -r line; "
    'printf "%s|%s|" "" "$klong_timeout"; eval "$line"; printf "%s|%s" "$klong_nonce" "$klong_command"; cat'
)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize(
    ("kind", "shell", "language"),
    [("bash", ["bash", "-c", BASH], "C"), ("bash", ["bash", "-c", BASH], "C.UTF-8"), ("sh", ["sh", "-c", SH], "C")],
)
def test_a_shell_reads_what_was_written(kind, shell, language, text):
    sent = message(kind, NONCE, 1.5, text)
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": language}
    got = subprocess.run(shell, input=sent + b"rest", env=environment, capture_output=True, check=True)
    nonce = NONCE if kind == "bash" else ""
    assert got.stdout == f"{nonce}|1.500|{NONCE}|".encode() + text.encode("utf-8", "replace") + b"rest"
    assert got.stderr == b""
