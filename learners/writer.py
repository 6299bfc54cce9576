"""A process that writes beside training: a fork of a learner rank.

A fork of a process with threads has none of those threads, and whatever locks they held stay locked. So it does little:
no collective, no CUDA, no Ray call, one torch thread; it ends by `os._exit` (multiprocessing's way), with no
destructor of the rank's objects run.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Write = Callable[[], None]

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_FIRST_OWN_DESCRIPTOR = 3  # after stdin, stdout, stderr


def in_fork(write: Callable[..., None]) -> Callable[..., None]:
    """`write`, as it is to be run by a process that the calling process forks."""
    return partial(_write, os.getpid(), write)


def reported(write: Write) -> tuple[Write, Write]:
    """`write` for a forked process, and what tells its parent, once that has ended, how it went: OSError if badly."""
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)

    def check() -> None:
        send.close()
        with receive:
            try:
                failure = receive.recv()
            except EOFError:
                failure = "its process ended before it was done"
        if failure:
            raise OSError(f"a part of the checkpoint could not be written: {failure}")

    return in_fork(partial(_report, write, send)), check


def _write(rank_pid: int, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    # What is left to write when the rank is gone, nobody waits for.
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != rank_pid:
        os._exit(1)
    _close_sockets()
    torch.set_num_threads(1)  # the pool of the rank's is not here, and OpenMP would wait for it
    write(*args, **kwargs)


def _close_sockets() -> None:
    """The rank's, to its peers and to Ray: they see its death by them, at once if nobody else has them open."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with contextlib.suppress(OSError):  # the one that listed them
            if descriptor >= _FIRST_OWN_DESCRIPTOR and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)


def _report(write: Write, send: Any) -> None:
    try:
        write()
    except Exception as error:
        send.send(f"{type(error).__name__}: {error}")
        raise
    send.send("")
