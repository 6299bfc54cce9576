"""Weights that an engine fetches from the learner over a network (klong_rl.link): a backend of vLLM's own API.

    actor: pause ─▶ start ─▶ update_weights(what the learner's publish returned) ─▶ finish ─▶ resume
                               │ in each process of the engine: connect once, then buckets ─▶ model.load_weights

Beside vLLM's own NCCL backend it has an end to every wait, a group that is made again for whoever is new, and gloo, so
that the whole of it runs on CPUs too.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klong_rl import link
from klong_rl.link.channel import wait

if TYPE_CHECKING:
    import torch

Address = tuple[str, int]


@dataclass(frozen=True)
class Place:
    """Which of an engine's processes this is."""

    engine: str
    rank: int
    world: int


class Receiver:
    """This process's end of the link; the connection is kept from one version to the next."""

    def __init__(self, place: Place, device: torch.device, deadline_s: float) -> None:
        self._place, self._device, self._deadline_s = place, device, deadline_s
        self._address: Address | None = None  # of the learner it is linked to
        self._connection: socket.socket | None = None
        self._channel: link.Channel | None = None

    def fetch(
        self, address: Address, version: int, plan: Sequence[link.Bucket]
    ) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """The tensors of `version`, bucket by bucket; LinkLost if the learner dies, refuses or is late.

        After LinkLost, or where the caller stops halfway, the next call makes the link anew.
        """
        whole = False
        try:
            if self._address != address:
                self.close()
                self._open(address)
            until = time.monotonic() + self._deadline_s
            link.send(self._connection, link.Want(version))
            link.receive(self._connection, link.Ready, until)
            yield from self._buckets(plan, until)
            whole = True
        finally:
            if not whole:
                self.close()

    def close(self) -> None:
        """End the link. The learner sees it, and ends its side."""
        if self._connection is not None:
            self._connection.close()
        if self._channel is not None:
            self._channel.close()
        self._address = self._connection = self._channel = None

    def _open(self, address: Address) -> None:
        from torch.distributed import PrefixStore, TCPStore

        until = time.monotonic() + self._deadline_s
        self._connection = link.connect(address, until)
        link.send(self._connection, link.Hello(self._place.engine, self._place.rank, self._place.world))
        meet = link.receive(self._connection, link.Meet, until)
        peers = link.Peers([self._connection])

        def store() -> PrefixStore:
            return PrefixStore(meet.prefix, TCPStore(address[0], meet.port, is_master=False, wait_for_workers=False))

        rank, size = self._place.rank + 1, self._place.world + 1
        self._channel = link.join(store, rank, size, self._device, peers, self._deadline_s)
        self._address = address

    def _buckets(self, plan: Sequence[link.Bucket], until: float) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """While one bucket is loaded, the next one comes."""
        import torch

        peers, under_way = link.Peers([self._connection]), None
        for bucket in [*plan, None]:
            coming = None
            if bucket is not None:
                # A buffer for each: vLLM keeps what it is given until a layer is whole.
                buffer_B = torch.empty(bucket.size, dtype=torch.uint8, device=self._device)
                coming = bucket, buffer_B, self._channel.broadcast(buffer_B)
            if under_way is not None:
                wait(under_way[2], peers, until, "the weights did not come")
                yield _unpack(*under_way[:2])
            under_way = coming


def _unpack(bucket: link.Bucket, buffer_B: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Views of the buffer."""
    import torch

    return [
        (
            entry.name,
            buffer_B[entry.start : entry.start + entry.size].view(getattr(torch, entry.dtype)).view(entry.shape),
        )
        for entry in bucket.entries
    ]


def engine_class(reloading: type) -> type:
    """vLLM's WeightTransferEngine of this backend; `reloading` starts and finishes a layer-wise reload."""
    from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        engine: str
        deadline_s: float

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        """What learners.link.LinkedWeights.publish returned."""

        address: list
        version: int
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]

    class NetworkEngine(reloading):
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            place = Place(init_info.engine, self.parallel_config.rank, self.parallel_config.world_size)
            self._receiver = Receiver(place, self.device, init_info.deadline_s)

        def receive_weights(self, update_info: UpdateInfo) -> None:
            plan = link.buckets(update_info.names, update_info.dtype_names, update_info.shapes)
            host, port = update_info.address
            for tensors in self._receiver.fetch((host, port), update_info.version, plan):
                self.model.load_weights(iter(tensors))
            self.check_loaded(f"version {update_info.version}")

        def shutdown(self) -> None:
            if getattr(self, "_receiver", None) is not None:
                self._receiver.close()

    return NetworkEngine
