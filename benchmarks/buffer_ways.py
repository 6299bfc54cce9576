"""The ways in which `benchmarks/buffer.py` moves the same segments: ours, and each of its rivals as its docs use it.

A way gets a batch of segments in its own form beforehand (`prepare`), since each rival's producer has it so; what is
timed is `put` and then `get`. `ids` gives the token ids in what `get` gave, to check that it is what went in.

    Ours           Buffer.append_many (append for one), then Buffer.segments
    Raw            the frames that ours made, by pipelined SET and GET: what this Redis gives a client that does nothing
    RawBlocking    the same through redis-py's blocking client
    Streams        the same frames by pipelined XADD, then XREAD
    PickledLists   PipelineRL: XADD of a pickled list of dicts of Python lists, a batch an entry, then XREAD
    TransferQueue  kv_batch_put (kv_put for one), then kv_batch_get, with its default storage in memory
    RayObjects     ray.put, the reference handed over by an actor, then ray.get
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import ray
import redis
import redis.asyncio

from klong_rl.buffer import Buffer
from klong_rl.types import EpisodeSpec, Segment, Task
from klong_rl.wire import decode, encode

TASK = Task(id="bench", family="bench", instruction="None.", image="none")
IGNORED = -100  # PipelineRL's label of a token that is not trained


def spec(episode: str) -> EpisodeSpec:
    return EpisodeSpec(
        id=episode, group=episode, group_size=1, stage=1, purpose="train", task=TASK, timeout_s=1.0, max_turns=1
    )


def dense(segment: Segment) -> dict[str, np.ndarray]:
    """As trainers keep it: an entry a token for ids, log-probs and mask; versions run-length coded, as ours are."""
    ids, logprobs, mask = [], [], []
    for turn in segment.turns:
        n, m = len(turn.action_A), len(turn.observation_O)
        ids += [turn.action_A, turn.observation_O]
        logprobs += [turn.logprobs_A, np.zeros(m, np.float32)]
        mask += [np.ones(n, np.uint8), np.zeros(m, np.uint8)]
    versions = np.array([turn.versions for turn in segment.turns], np.int32).ravel()
    parts = {"ids": ids, "logprobs": logprobs, "mask": mask}
    return {name: np.concatenate(arrays) for name, arrays in parts.items()} | {"versions": versions}


def ids_of(segments: Sequence[Segment]) -> np.ndarray:
    return np.concatenate([dense(segment)["ids"] for segment in segments])


class Way(Protocol):
    async def prepare(self, batch: list[Segment]) -> Any: ...
    async def put(self, prepared: Any) -> None: ...
    async def get(self, prepared: Any) -> Any: ...
    def ids(self, got: Any) -> np.ndarray: ...
    def clear(self) -> None: ...


class Ours:
    """A batch is an episode."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.names = itertools.count()

    async def prepare(self, batch: list[Segment]) -> list[Segment]:
        await self.buffer.admit(spec(f"episode-{next(self.names)}"))
        claim = await self.buffer.claim("bench")
        replace = msgspec.structs.replace
        return [replace(one, episode=claim.spec.id, epoch=claim.epoch, seq=seq) for seq, one in enumerate(batch)]

    async def put(self, prepared: list[Segment]) -> None:
        await self.buffer.append_many(prepared[0].episode, prepared[0].epoch, prepared)

    async def get(self, prepared: list[Segment]) -> list[Segment]:
        return await self.buffer.segments(prepared[0].episode)

    def ids(self, got: list[Segment]) -> np.ndarray:
        return ids_of(got)

    def clear(self) -> None:
        """Redis is emptied after each repetition of each way."""


class Frames:
    """Ways that move our frames without what the buffer does."""

    def __init__(self, url: str, client: type = redis.asyncio.Redis) -> None:
        self.client = client.from_url(url)
        self.names = itertools.count()

    async def prepare(self, batch: list[Segment]) -> tuple[str, list[bytes]]:
        return f"batch-{next(self.names)}", [encode(segment) for segment in batch]

    def ids(self, got: list[bytes]) -> np.ndarray:
        return ids_of([decode(frame, Segment) for frame in got])

    def clear(self) -> None: ...


class Raw(Frames):
    async def put(self, prepared: tuple[str, list[bytes]]) -> None:
        await self._put(*prepared).execute()

    async def get(self, prepared: tuple[str, list[bytes]]) -> list[bytes]:
        return await self._get(*prepared).execute()

    def _put(self, name: str, frames: list[bytes]) -> Any:
        pipe = self.client.pipeline(transaction=False)
        for i, frame in enumerate(frames):
            pipe.set(f"{name}:{i}", frame)
        return pipe

    def _get(self, name: str, frames: list[bytes]) -> Any:
        pipe = self.client.pipeline(transaction=False)
        for i in range(len(frames)):
            pipe.get(f"{name}:{i}")
        return pipe


class RawBlocking(Raw):
    def __init__(self, url: str) -> None:
        super().__init__(url, redis.Redis)

    async def put(self, prepared: tuple[str, list[bytes]]) -> None:
        self._put(*prepared).execute()

    async def get(self, prepared: tuple[str, list[bytes]]) -> list[bytes]:
        return self._get(*prepared).execute()


class Streams(Frames):
    async def put(self, prepared: tuple[str, list[bytes]]) -> None:
        name, frames = prepared
        pipe = self.client.pipeline(transaction=False)
        for frame in frames:
            pipe.xadd(name, {"data": frame})
        await pipe.execute()

    async def get(self, prepared: tuple[str, list[bytes]]) -> list[bytes]:
        ((_, entries),) = await self.client.xread({prepared[0]: 0}, count=len(prepared[1]))
        return [entry[b"data"] for _, entry in entries]


class PickledLists:
    """pipelinerl/streams.py and actor.py: an entry is the texts of a group, each a dict as its pydantic model dumps."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.names = itertools.count()

    async def prepare(self, batch: list[Segment]) -> tuple[str, list[dict]]:
        return f"stream-{next(self.names)}", [self._text(dense(segment)) for segment in batch]

    @staticmethod
    def _text(arrays: dict[str, np.ndarray]) -> dict:
        trained = arrays["mask"] > 0
        return {
            "input_ids": arrays["ids"].tolist(),
            "labels": np.where(trained, arrays["ids"], IGNORED).tolist(),
            "logprobs": arrays["logprobs"][trained].tolist(),
            "metadata": {"versions": arrays["versions"].tolist()},
        }

    async def put(self, prepared: tuple[str, list[dict]]) -> None:
        name, texts = prepared
        self.client.xadd(name, {"index": 0, "data": pickle.dumps(texts)}, maxlen=1_000_000, approximate=True)

    async def get(self, prepared: tuple[str, list[dict]]) -> list[dict]:
        ((_, ((_, entry),)),) = self.client.xread({prepared[0]: 0}, count=1, block=100)
        return pickle.loads(entry[b"data"])

    def ids(self, got: list[dict]) -> np.ndarray:
        return np.concatenate([np.array(text["input_ids"], np.int32) for text in got])

    def clear(self) -> None: ...


class TransferQueue:
    """Expects `transfer_queue.init()`."""

    PARTITION = "bench"

    def __init__(self) -> None:
        import transfer_queue  # an optional requirement: conf/requirements/benchmarks.txt

        self.queue = transfer_queue
        self.names = itertools.count()
        self.held: list[str] = []

    async def prepare(self, batch: list[Segment]) -> tuple[list[str], Any]:
        import torch
        from tensordict import TensorDict

        keys = [f"key-{next(self.names)}" for _ in batch]
        rows = [dense(segment) for segment in batch]
        fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        if len(batch) == 1:
            return keys, {name: column[0] for name, column in fields.items()}
        return keys, TensorDict(fields, batch_size=len(batch))

    async def put(self, prepared: tuple[list[str], Any]) -> None:
        keys, fields = prepared
        self.held += keys
        if len(keys) == 1:
            self.queue.kv_put(key=keys[0], partition_id=self.PARTITION, fields=fields)
        else:
            self.queue.kv_batch_put(keys=keys, partition_id=self.PARTITION, fields=fields)

    async def get(self, prepared: tuple[list[str], Any]) -> Any:
        return self.queue.kv_batch_get(keys=prepared[0], partition_id=self.PARTITION)

    def ids(self, got: Any) -> np.ndarray:
        return np.concatenate([row.numpy() for row in got["ids"].unbind()])

    def clear(self) -> None:
        self.queue.kv_clear(self.held, self.PARTITION)
        self.held.clear()


@ray.remote(num_cpus=0)
class Shelf:
    def __init__(self) -> None:
        self.references: dict[str, list] = {}

    def put(self, name: str, reference: list) -> None:
        self.references[name] = reference

    def take(self, name: str) -> list:
        return self.references.pop(name)


class RayObjects:
    def __init__(self) -> None:
        self.shelf = Shelf.remote()
        self.names = itertools.count()

    async def prepare(self, batch: list[Segment]) -> tuple[str, list[dict]]:
        return f"object-{next(self.names)}", [dense(segment) for segment in batch]

    async def put(self, prepared: tuple[str, list[dict]]) -> None:
        name, rows = prepared
        await self.shelf.put.remote(name, [ray.put(rows)])  # in a list: Ray would replace a bare one by its object

    async def get(self, prepared: tuple[str, list[dict]]) -> list[dict]:
        (reference,) = await self.shelf.take.remote(prepared[0])
        return ray.get(reference)

    def ids(self, got: list[dict]) -> np.ndarray:
        return np.concatenate([row["ids"] for row in got])

    def clear(self) -> None: ...
