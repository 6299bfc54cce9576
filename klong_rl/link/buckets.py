"""Which tensors travel together: both sides work it out from names, dtypes and shapes, so only those are agreed on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BUCKET_BYTES = 1 << 28  # large beside what a broadcast costs to start, small beside a GPU
ALIGNED = 16  # bytes: a tensor of any dtype may begin there
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int8": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor within a bucket: bytes `start` to `start + size`. `dtype` is torch's name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Bucket:
    entries: tuple[Entry, ...]
    size: int  # bytes, alignment included


def buckets(
    names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], most: int = BUCKET_BYTES
) -> list[Bucket]:
    """The tensors, in their order, in buckets of at most `most` bytes; one that is larger has its own.

    Raises ValueError for a dtype that can't travel.
    """
    made: list[Bucket] = []
    entries: list[Entry] = []
    used = 0
    for name, dtype, shape in zip(names, dtypes, shapes, strict=True):
        if dtype not in ITEM_BYTES:
            raise ValueError(f"{name} is of dtype {dtype}, which can't be sent; use one of {sorted(ITEM_BYTES)}")
        size = ITEM_BYTES[dtype] * math.prod(shape)
        if entries and used + size > most:
            made.append(Bucket(tuple(entries), used))
            entries, used = [], 0
        entries.append(Entry(name, dtype, tuple(shape), used, size))
        used += -(-size // ALIGNED) * ALIGNED
    return [*made, Bucket(tuple(entries), used)] if entries else made
