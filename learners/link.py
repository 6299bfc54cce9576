"""Published weights for engines on other GPUs or hosts: staged here, sent to whoever asks (klong_rl.link).

The learner's own thread only stages: a copy of the weights on rank 0's device, after which it may go on training.
Each engine is served by a thread of its own, from its first connection to the closing of it. What goes wrong with an
engine ends its thread, with a warning: the engine itself sees it too, and is replaced or connects again.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from klong_rl import link
from learners.publish import KEPT, Published, Tensors

log = logging.getLogger(__name__)


@dataclass
class _Staged:
    """One version. `senders` threads read it; it is written again only when there are none."""

    version: int = -1
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    senders: int = 0


class LinkedWeights:
    """The last two versions, on the device of the tensors. Picklable until the first publish, which opens the port."""

    def __init__(self, deadline_s: float) -> None:
        """`deadline_s` bounds the making of a group, and the sending of one version to one engine."""
        self._deadline_s = deadline_s
        self._server: _Server | None = None

    def publish(self, version: int, tensors: Tensors) -> Published:
        """Stage `tensors` as `version`; returns what an engine needs to fetch them."""
        if self._server is None:
            self._server = _Server(self._deadline_s)
        staged = self._server.stage(version, tensors)
        return {
            "address": list(self._server.address),
            "version": version,
            "names": list(staged),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in staged.values()],
            "shapes": [list(tensor.shape) for tensor in staged.values()],
        }

    def remove(self) -> None:
        """Nothing is left to free: the memory ends with the rank's process."""


class _Server:
    def __init__(self, deadline_s: float) -> None:
        from ray.util import get_node_ip_address
        from torch.distributed import TCPStore

        self._deadline_s = deadline_s
        self._staged = [_Staged() for _ in range(KEPT)]
        self._idle = threading.Condition()  # holds `_staged`; told when a thread has sent
        self._greeting = threading.Lock()  # holds the next two
        self._waiting: dict[str, dict[int, socket.socket]] = {}  # engine: its processes that said hello
        self._groups = 0
        # Beside the engines' own start; the first group waits for it.
        self._prepared = threading.Thread(target=link.prepare, name="klong-link-prepare", daemon=True)
        self._prepared.start()
        host = get_node_ip_address()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self._listener = socket.create_server((host, 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, name="klong-link", daemon=True).start()

    def stage(self, version: int, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Into the older copy. A sender that is late with that one is waited for: it has a deadline of its own."""
        with self._idle:
            older = min(self._staged, key=lambda staged: staged.version)
            if not self._idle.wait_for(lambda: not older.senders, 2 * self._deadline_s):
                raise link.LinkLost(f"version {older.version} is still being sent to {older.senders} engines")
            older.version = -1
        for name, tensor in tensors:
            if name not in older.tensors:
                older.tensors[name] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            older.tensors[name].copy_(tensor)
        if any(tensor.is_cuda for tensor in older.tensors.values()):
            torch.cuda.synchronize()  # senders work on streams of their own
        older.version = version
        return older.tensors

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._greet, args=(connection,), name="klong-link-engine", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """The thread of the last of an engine's processes to say hello serves them all."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            hello = link.receive(connection, link.Hello, time.monotonic() + self._deadline_s)
        except link.LinkLost as lost:
            log.warning("a connection for weights was closed: %s", lost)
            connection.close()
            return
        with self._greeting:
            here = self._waiting.setdefault(hello.engine, {})
            if (former := here.pop(hello.rank, None)) is not None:
                former.close()
            here[hello.rank] = connection
            if len(here) < hello.world:
                return
            del self._waiting[hello.engine]
            self._groups += 1
            prefix = f"{hello.engine}/{self._groups}"
        self._serve(hello.engine, prefix, [here[rank] for rank in sorted(here)])

    def _serve(self, engine: str, prefix: str, connections: Sequence[socket.socket]) -> None:
        """One engine, until it is gone."""
        channel = None
        try:
            channel = self._join(prefix, connections)
            while True:
                wants = [link.receive(connection, link.Want, None) for connection in connections]
                self._give(wants[0].version, channel, connections)
        except link.LinkLost as lost:
            log.warning("the link to engine %s has ended: %s", engine, lost)
        finally:
            for connection in connections:
                connection.close()
            if channel is not None:
                channel.close()

    def _join(self, prefix: str, connections: Sequence[socket.socket]) -> link.Channel:
        from torch.distributed import PrefixStore

        self._prepared.join(self._deadline_s)
        for connection in connections:
            link.send(connection, link.Meet(self._store.port, prefix))
        device = next(iter(self._staged[0].tensors.values())).device
        size, peers = 1 + len(connections), link.Peers(connections)
        return link.join(lambda: PrefixStore(prefix, self._store), 0, size, device, peers, self._deadline_s)

    def _give(self, version: int, channel: link.Channel, connections: Sequence[socket.socket]) -> None:
        staged = self._take(version)
        if staged is None:
            for connection in connections:
                link.send(connection, link.Refused(f"version {version} is not here any more"))
            return
        try:
            for connection in connections:
                link.send(connection, link.Ready())
            _broadcast(staged.tensors, channel, link.Peers(connections), time.monotonic() + self._deadline_s)
        finally:
            with self._idle:
                staged.senders -= 1
                self._idle.notify_all()

    def _take(self, version: int) -> _Staged | None:
        with self._idle:
            staged = next((staged for staged in self._staged if staged.version == version), None)
            if staged is not None:
                staged.senders += 1
            return staged


def _broadcast(tensors: dict[str, torch.Tensor], channel: link.Channel, peers: link.Peers, until: float) -> None:
    """All buckets; the next one is packed while one is sent."""
    from klong_rl.link.channel import wait

    under_way: Any = None
    for bucket in _plan(tensors):
        with channel.working():
            buffer_B = _pack(bucket, tensors)
            done = channel.broadcast(buffer_B)
        if under_way is not None:
            wait(under_way[0], peers, until, "the weights were not sent")
        under_way = done, buffer_B  # the buffer lives until it is sent
    if under_way is not None:
        wait(under_way[0], peers, until, "the weights were not sent")


def _plan(tensors: dict[str, torch.Tensor]) -> Iterable[link.Bucket]:
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()]
    return link.buckets(list(tensors), dtypes, [tuple(tensor.shape) for tensor in tensors.values()])


@torch.no_grad()
def _pack(bucket: link.Bucket, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The bucket's tensors as bytes, each where its entry says."""
    sources = [tensors[entry.name].view(-1).view(torch.uint8) for entry in bucket.entries]
    buffer_B = torch.empty(bucket.size, dtype=torch.uint8, device=sources[0].device)
    places = [buffer_B[entry.start : entry.start + entry.size] for entry in bucket.entries]
    torch._foreach_copy_(places, sources)
    return buffer_B
