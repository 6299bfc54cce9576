"""Records on the wire: MessagePack in a frame that says what it holds and whether it is whole.

    "KL" · kind u8 · layout u8 · length of the body u32 · xxh3_64 of the body, seeded with kind and layout u64 · body

Numbers are little-endian; arrays travel as their raw little-endian bytes. The scripts in Redis check kind and length, a
reader checks everything. What doesn't fit is a `WireError`, never a record with another content.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec
import numpy as np
import xxhash

from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict, Window

T = TypeVar("T")

# Part of the format: a number once given stays. `transitions/header.lua` names those that the scripts take.
KINDS: dict[type, int] = {EpisodeSpec: 1, Segment: 2, Outcome: 3, Verdict: 4, Window: 5, Turn: 6, Task: 7}
LAYOUT = 1  # of the records' fields; a change that older readers can't read takes the next number

_HEADER = struct.Struct("<2sBBIQ")
HEADER_BYTES = _HEADER.size
_MAGIC = b"KL"

# One byte a kind, so that an array's dtype is on the wire and a reader can't mistake one for another.
_DTYPES = {1: np.dtype("<i4"), 2: np.dtype("<f4"), 3: np.dtype("u1")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class WireError(Exception):
    """A message that isn't a whole record of the kind that was expected."""


def encode(record: Any) -> bytes:
    """The frame of any record in KINDS. TypeError for another type, or for an array that doesn't travel."""
    kind = KINDS.get(type(record))
    if kind is None:
        raise TypeError(f"{type(record).__name__} is no record of the wire; those are {_names(KINDS)}")
    frame = bytearray(HEADER_BYTES)
    _ENCODER.encode_into(record, frame, HEADER_BYTES)
    body = memoryview(frame)[HEADER_BYTES:]
    _HEADER.pack_into(frame, 0, _MAGIC, kind, LAYOUT, len(body), _checksum(body, kind, LAYOUT))
    return bytes(frame)


def decode(frame: bytes, kind: type[T]) -> T:
    """The record of `kind` in a frame. WireError if it isn't one, whole and unchanged."""
    body = _body(frame, kind)
    try:
        return _DECODERS[kind].decode(body)
    except (msgspec.DecodeError, ValueError, TypeError) as error:  # ValidationError, which names the field, is one
        raise WireError(f"{kind.__name__}: its frame is whole, its body is not of this layout: {error}") from error


def _body(frame: bytes, kind: type) -> memoryview:
    if len(frame) < HEADER_BYTES:
        raise WireError(f"{kind.__name__}: {len(frame)} bytes are less than a frame's header of {HEADER_BYTES}")
    magic, code, layout, length, checksum = _HEADER.unpack_from(frame)
    if magic != _MAGIC:
        raise WireError(f"{kind.__name__}: the message begins with {magic!r}, a frame with {_MAGIC!r}")
    if code != KINDS[kind]:
        found = next((name.__name__ for name, number in KINDS.items() if number == code), f"unknown kind {code}")
        raise WireError(f"{kind.__name__}: the frame holds {found}")
    if layout != LAYOUT:
        raise WireError(f"{kind.__name__}: layout {layout} was written by another release; this one reads {LAYOUT}")
    body = memoryview(frame)[HEADER_BYTES:]
    if length != len(body):
        raise WireError(f"{kind.__name__}: {len(body)} bytes came, the frame says {length}")
    if checksum != _checksum(body, code, layout):
        raise WireError(f"{kind.__name__}: the checksum of its {length} bytes doesn't fit: it was changed on the way")
    return body


def _checksum(body: memoryview, kind: int, layout: int) -> int:
    return xxhash.xxh3_64_intdigest(body, seed=kind << 8 | layout)


def _names(kinds: dict[type, int]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


def _to_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        code = _CODES.get(value.dtype)
        if code is None or value.ndim != 1:
            raise TypeError(f"only flat int32, float32 and uint8 arrays travel, not {value.dtype}{list(value.shape)}")
        return msgspec.msgpack.Ext(code, np.ascontiguousarray(value).data)
    raise TypeError(f"{type(value).__name__} does not travel")


def _array_from_wire(code: int, data: memoryview) -> np.ndarray:
    if code not in _DTYPES:
        raise ValueError(f"unknown array code {code}; known: {sorted(_DTYPES)}")
    return np.frombuffer(bytes(data), dtype=_DTYPES[code])


def _check_type(expected: type, value: Any) -> Any:
    if not isinstance(value, expected):
        raise TypeError(f"expected {expected.__name__}, got {type(value).__name__}")
    return value


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_wire)
_DECODERS = {kind: msgspec.msgpack.Decoder(kind, ext_hook=_array_from_wire, dec_hook=_check_type) for kind in KINDS}
