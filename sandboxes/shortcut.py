"""The way past the daemon to a shell on this machine: into the very pipe through which it is handed commands.

A command that goes by the daemon wakes the daemon, the container's shim and the supervisor before it wakes its own
shell; put into the executor's pipe it wakes that alone. Replies come by the daemon all the same: it goes on reading
when this process is gone, so that what runs in the background is never stuck on its output.

    by the daemon   channel ─▶ dockerd ─▶ shim ─▶ supervisor ─pipe─▶ executor's child
    by the shortcut channel ─────────────────────────────────pipe─▶ executor's child

The pipe is found in /proc, where this process may look at the shell's: as root, mostly, and beside the daemon, not in a
container of its own or on another host. Anywhere else commands go by the daemon.
"""

from __future__ import annotations

import os
import select
import stat

ATOMIC_BYTES = select.PIPE_BUF  # a write of at most this many is whole or refused


class Shortcut:
    """Holds the pipe without being one of its writers: it ends with its supervisor, as without a shortcut."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    @classmethod
    def find(cls, pid: int, token: str) -> Shortcut | None:
        """That of the executor with this number and this value of `klong_token` in its environment, if in reach.

        The daemon's process numbers may not be this process's: the token tells.
        """
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if b"klong_token=%s" % token.encode() not in file.read().split(b"\0"):
                    return None
            pipe = os.open(f"/proc/{pid}/fd/0", os.O_PATH)
        except OSError:
            return None
        # What the agent may have put there in its place, a file that it may only read, is not to be written to.
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            os.close(pipe)
            return None
        return cls(pipe)

    def put(self, data: bytes) -> bool:
        """Write `data` to the pipe; False if it has no room, or might not take all. OSError when nobody reads it."""
        if len(data) > ATOMIC_BYTES:
            return False
        writer = os.open(f"/proc/self/fd/{self._pipe}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(writer, data)
        except BlockingIOError:
            return False
        finally:
            os.close(writer)
        return True

    def close(self) -> None:
        os.close(self._pipe)
