"""The batches of a fine-tuning, in an order that a seed fixes and that can be taken up again at any batch.

    units, in an order drawn for the epoch ─▶ rows ─▶ windows, split as they are asked for
        ─▶ blocks of `shuffle_windows` windows, each shuffled ─▶ batches of `tokens_per_step` tokens

Only one block, and one trajectory's tokens, are in memory. Where the stream stands is a `Position`: the place where its
block begins, and how many windows of the block are used. To go on there, that block is made again: the same one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from klong_rl.errors import UserError
from klong_rl.fine_tuning.files import DataSet
from klong_rl.fine_tuning.rows import Encoder, Row, bad
from klong_rl.types import Window
from klong_rl.windows import ContextOverflow, ContextRule, windows

HELD_OUT_EPOCH = 2**31  # seeds the order in which held-out trajectories are taken


class Place(msgspec.Struct, frozen=True):
    """In an epoch: the number of a unit in its order, of a row in the unit, of a window in the trajectory."""

    unit: int = 0
    row: int = 0
    window: int = 0


class Position(msgspec.Struct, frozen=True):
    """`used` windows of the block that begins at `place` are in batches already."""

    epoch: int = 0
    place: Place = Place()
    block: int = 0  # of the epoch
    used: int = 0


def is_held_out(identity: str, share: float) -> bool:
    """Of the trajectory `identity`: the same answer wherever and in whatever order it is read."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@dataclass(frozen=True)
class WindowSource:
    """The windows of the rows of `data` that are `wanted`. An epoch's order of units is drawn from `seed`."""

    data: DataSet
    encoder: Encoder
    rule: ContextRule
    seed: int
    wanted: Callable[[Row], bool]

    def read(self, epoch: int, place: Place) -> Iterator[tuple[Window, Place]]:
        """The windows of an epoch from `place` on, each with the place after it."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
        for unit in range(place.unit, len(order)):
            first_row = place.row if unit == place.unit else 0
            for number, (name, row) in itertools.islice(enumerate(self.data.rows(order[unit])), first_row, None):
                if not self.wanted(row):
                    continue
                here = Place(unit, number)
                first = place.window if (here.unit, here.row) == (place.unit, place.row) else 0
                for window, made in itertools.islice(enumerate(self._windows(f"{epoch}.{name}", row)), first, None):
                    yield made, Place(unit, number, window + 1)

    def _windows(self, identity: str, row: Row) -> Iterator[Window]:
        trajectory = msgspec.structs.replace(self.encoder.trajectory(row), id=identity)
        try:
            yield from windows(trajectory, self.rule)
        except ContextOverflow as overflow:
            raise bad(row.where, "prefix", f"{overflow}; raise window.max_tokens or shorten the task") from overflow


class Batch(NamedTuple):
    """What one step trains, where the stream stands after it, and how many epochs that is."""

    windows: list[Window]
    after: Position
    epochs: float


class WindowStream:
    """The batches from `position` to the end of `epochs`: the same ones, wherever they were taken up again."""

    def __init__(
        self, source: WindowSource, position: Position, *, epochs: int, shuffle_windows: int, tokens_per_step: int
    ) -> None:
        self._source = source
        self._position = position
        self._epochs = epochs
        self._shuffle_windows = shuffle_windows
        self._tokens_per_step = tokens_per_step

    def __iter__(self) -> Iterator[Batch]:
        """Each batch has as many windows as fit in `tokens_per_step`, the last one what is left."""
        batch, n_tokens, after = [], 0, (self._position, 0.0)
        for window, *then in self._windows():
            if batch and n_tokens + len(window.tokens_T) > self._tokens_per_step:
                yield Batch(batch, *after)
                batch, n_tokens = [], 0
            batch.append(window)
            n_tokens += len(window.tokens_T)
            after = then
        if batch:
            yield Batch(batch, *after)

    def is_exhausted(self) -> bool:
        """Whether there is no batch."""
        return next(self._windows(), None) is None

    def _windows(self) -> Iterator[tuple[Window, Position, float]]:
        """Shuffled windows, each with the position after it and the epochs that are done then."""
        at, units = self._position, max(1, len(self._source.data))
        while at.epoch < self._epochs:
            reader = self._source.read(at.epoch, at.place)
            while block := list(itertools.islice(reader, self._shuffle_windows)):
                order = np.random.default_rng([self._source.seed, at.epoch, at.block]).permutation(len(block))
                end = block[-1][1]
                began, ended = _units_done(at.place), _units_done(end)
                for used in range(at.used, len(block)):
                    done = began + (ended - began) * (used + 1) / len(block)
                    yield block[order[used]][0], msgspec.structs.replace(at, used=used + 1), at.epoch + done / units
                at = Position(at.epoch, end, at.block + 1)
            at = Position(at.epoch + 1)


def _units_done(place: Place) -> int:
    """Units of an epoch that are begun at `place`."""
    return place.unit + (place != Place(place.unit))


def held_out_windows(source: WindowSource, at_most_tokens: int) -> list[Window]:
    """Windows to evaluate, of trajectories in an order of their own. Raises UserError if not even one fits."""
    kept, n_tokens = [], 0
    for window, _ in source.read(HELD_OUT_EPOCH, Place()):
        n_tokens += len(window.tokens_T)
        if n_tokens > at_most_tokens:
            break
        kept.append(window)
    if not kept and n_tokens:
        raise UserError(f"held_out_tokens={at_most_tokens} is under the first window, of {n_tokens} tokens; raise it")
    return kept
