"""A group of the learner (rank 0) and an engine's processes, in which the learner broadcasts.

On GPUs it is vLLM's PyNcclCommunicator, which knows no watchdog that would end the process and can be aborted under a
broadcast that waits for a dead peer; on CPUs it is torch's gloo. Nothing here waits without a deadline: what blocks
runs in a thread of its own, which is left to its end if that doesn't come.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from klong_rl.link.wire import LinkLost, Peers

if TYPE_CHECKING:
    import torch

LOOK_S = 2e-4  # between two looks at a broadcast: a bucket takes a millisecond on NVLink
LOOK_AT_PEERS_S = 0.02


class Channel(Protocol):
    """Broadcasts of the learner's, one after the other."""

    def broadcast(self, buffer_B: torch.Tensor) -> Callable[[], bool]:
        """Begin to send, or to fill, a uint8 buffer; what comes back says whether it is done, and raises LinkLost."""

    def working(self) -> contextlib.AbstractContextManager:
        """In this context, what the sender packs comes before its broadcast and beside other work of the device."""

    def close(self) -> None:
        """End the group, whatever it is doing; all ranks of it do so."""


def prepare() -> None:
    """Import what a channel of this machine needs: with a GPU vLLM, which takes twenty seconds."""
    import torch

    if torch.cuda.is_available():
        import vllm.distributed.device_communicators.pynccl  # noqa: F401


def join(
    store: Callable[[], Any], rank: int, size: int, device: torch.device, peers: Peers, deadline_s: float
) -> Channel:
    """Become `rank` of a new group of `size`. `store` connects to the rendezvous. Raises LinkLost at the deadline."""
    kind = _Nccl if device.type == "cuda" else _Gloo
    channel: list[Channel] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            channel.append(kind(store(), rank, size, device, deadline_s))
        except Exception as error:  # told by the caller, who waits for it
            failure.append(error)

    thread = threading.Thread(target=work, name="klong-link-join", daemon=True)
    thread.start()
    wait(lambda: not thread.is_alive(), peers, time.monotonic() + deadline_s, "the group was not made")
    if failure:
        raise LinkLost(f"the group could not be made: {failure[0]}") from failure[0]
    return channel[0]


def wait(done: Callable[[], bool], peers: Peers, until: float, late: str) -> None:
    """Until `done`; LinkLost if a peer is gone, or at `until` (monotonic clock)."""
    look_at_peers = time.monotonic() + LOOK_AT_PEERS_S
    while not done():
        now = time.monotonic()
        if now > until:
            raise LinkLost(f"{late} in time")
        if now > look_at_peers:
            peers.check()
            look_at_peers = now + LOOK_AT_PEERS_S
        time.sleep(LOOK_S)


class _Gloo:
    def __init__(self, store: Any, rank: int, size: int, device: torch.device, deadline_s: float) -> None:
        from torch.distributed import BroadcastOptions, ProcessGroupGloo

        self._options = BroadcastOptions()
        self._options.rootRank = 0
        self._group = ProcessGroupGloo(store, rank, size, timedelta(seconds=deadline_s))

    def broadcast(self, buffer_B: torch.Tensor) -> Callable[[], bool]:
        work = self._group.broadcast([buffer_B], self._options)

        def done() -> bool:
            if not work.is_completed():
                return False
            try:
                work.wait()
            except RuntimeError as error:
                raise LinkLost(f"the other side is gone: {str(error).splitlines()[0]}") from error
            return True

        return done

    def working(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def close(self) -> None:
        del self._group


class _Nccl:
    def __init__(self, store: Any, rank: int, size: int, device: torch.device, deadline_s: float) -> None:
        import torch
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        torch.cuda.set_device(device)  # of this thread
        self._stream = torch.cuda.Stream(device)
        self._comm = PyNcclCommunicator(StatelessProcessGroup(rank=rank, world_size=size, store=store), device)
        if not self._comm.available:
            raise RuntimeError("vLLM found no NCCL library here")

    def broadcast(self, buffer_B: torch.Tensor) -> Callable[[], bool]:
        import torch

        self._stream.wait_stream(torch.cuda.current_stream(self._comm.device))
        self._comm.broadcast(buffer_B, src=0, stream=self._stream)
        sent = torch.cuda.Event()
        sent.record(self._stream)
        return sent.query

    def working(self) -> contextlib.AbstractContextManager:
        import torch

        return torch.cuda.stream(self._stream)

    def close(self) -> None:
        # An abort: a broadcast that waits for a peer which is gone ends with it.
        self._comm.destroy()
