"""A command and files as the supervisor takes them: text of a shell that no command and no name can break out of."""

from __future__ import annotations

import base64
import io
import posixpath
import re
import shlex
import tarfile
import time

LINE_BYTES = 96 * 1024  # Linux takes 128 KiB in one argument; longer commands go through a file
UPLOAD_BYTES = 768 * 1024  # in one shell word, 1 MiB as base64: bounds the supervisor's memory
BLOCK = 256  # bytes: most commands fit, with what goes with them
NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")  # of a variable


def as_sent(command: str, state: str, *, stdin: bytes, env: dict[str, str], cwd: str, apart: bool) -> tuple[str, bytes]:
    """What an executor is to run for a command, and what is uploaded before it, beside the file `state`.

    All that precedes the command is on its first line, so that a shell's messages name the command's own lines.
    """
    command = command.replace("\0", "")  # no variable of a shell can hold it, and shells drop it from scripts too
    text, before, uploads = command.encode("utf-8", "replace"), prologue(env, cwd), b""
    if len(text) > LINE_BYTES:
        path = f"{state}.upload"
        uploads += upload(text, path)
        command = (
            f'if [ "$(wc -c < {path})" -eq {len(text)} ]; then . {path}; '
            f"else echo 'no room for a command of {len(text)} bytes' >&2; false; fi"
        )
    if stdin:
        before += f"exec < {state}.stdin || exit; "
        uploads += upload(stdin, f"{state}.stdin")
    if apart:
        before += f"exec 2> {state}.stderr; "
        uploads += upload(b"", f"{state}.stderr")
    return before + command, uploads


def prologue(env: dict[str, str], cwd: str) -> str:
    """What is run before a command that has variables or a directory of its own: its state isn't saved."""
    if not env and not cwd:
        return ""
    for name in env:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a variable: use letters, digits and _, a letter or _ first")
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in env.items())
    return f"trap - EXIT; {exports}" + (f"cd -- {shlex.quote(cwd)} || exit; " if cwd else "")


def message(kind: str, nonce: str, timeout_s: float, text: str) -> bytes:
    """A command for an executor of this kind, then the nonce of its report, as they come through the executor's pipe.

    For bash it is ASCII in blocks of BLOCK bytes, each filled up with spaces. The first says how many bytes of command
    follow it, the rest of one that doesn't fit.

    >>> command, nonce = message("bash", "00000000000000aa", 60, "echo a").decode().split("   ", 1)
    >>> print(command)
    klong_more=0 klong_timeout=60.000 klong_nonce=00000000000000aa klong_command='echo a'
    >>> print(nonce.strip())
    klong_nonce=00000000000000aa
    """
    settings = f"klong_timeout={timeout_s:.3f} klong_nonce={nonce}"
    if kind != "bash":
        line = f"klong_command={one_line(text)} {settings}\nklong_nonce={nonce}\n"
        return line.encode("utf-8", "replace")
    command = f"klong_command={ascii_word(text)}"
    block, more = f"klong_more=0 {settings} {command}", ""
    if len(block) > BLOCK:
        block, more = f"klong_more={len(command)} {settings}", command
    return f"{block:{BLOCK}}{more}{f'klong_nonce={nonce}':{BLOCK}}".encode()


def one_line(text: str) -> str:
    """`text` as one word of a shell on one line, for a shell that has a newline in `klong_nl`."""
    return shlex.quote(text).replace("\n", "'\"$klong_nl\"'")


def ascii_word(text: str) -> str:
    """`text` as one word of bash that has as many bytes as characters in any locale."""
    if text.isascii():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(byte) for byte in text.encode("utf-8", "replace")) + "'"


def _escaped(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}"


def upload(data: bytes, path: str) -> bytes:
    """The lines that make a new file of `data` at `path`, a word of a shell."""
    chunks = [data[start : start + UPLOAD_BYTES] for start in range(0, len(data), UPLOAD_BYTES)]
    parts = [b"klong_part '" + base64.b64encode(chunk) + b"'\n" for chunk in chunks]
    return f"klong_upload {path}\n".encode() + b"".join(parts)


def pack(files: dict[str, bytes]) -> bytes:
    """A tar file of `files`; ValueError for a path that is absolute, empty or leaves the directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            normal = posixpath.normpath(path)
            if posixpath.isabs(path) or normal == "." or normal.split("/")[0] == ".." or "\0" in path:
                raise ValueError(f"path {path!r} is not inside the working directory: give one relative to it")
            entry = tarfile.TarInfo(normal)
            entry.size, entry.mode, entry.mtime = len(data), 0o644, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
