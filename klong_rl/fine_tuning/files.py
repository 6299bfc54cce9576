"""Files of trajectories, read a unit at a time: a line of JSONL, a row group of Parquet, a file of a run's archive.

A unit can be read on its own, in any order, so a data set larger than memory is shuffled without being loaded: only the
place of each unit is kept, and no file stays open. `DataSet.check` looks at every row, so that a bad one is found at
the start, not in hour 3.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klong_rl.buffer.archive import turn_of
from klong_rl.errors import UserError
from klong_rl.fine_tuning.rows import Row, bad, row_of
from klong_rl.windows import flat, trajectories

ROWS_AT_ONCE = 8  # of Parquet: a row may have millions of tokens
COLUMNS = ("id", "score", "messages", "tokens", "agent")


class Unit(NamedTuple):
    """`place` is a byte offset or a number of a row group; `row` is the number, from 1, of its first row."""

    place: int
    row: int


class TrajectoryFile(Protocol):
    path: Path

    def units(self) -> Iterator[Unit]: ...

    def read(self, unit: Unit) -> Iterator[Row]:
        """The rows of a unit. Raises UserError on one that isn't as documented."""


class JsonlFile:
    """A JSON object a line; empty lines are passed over. A unit is a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def units(self) -> Iterator[Unit]:
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Unit(place, number)
                place += len(line)

    def read(self, unit: Unit) -> Iterator[Row]:
        where = f"{self.path}: line {unit.row}"
        with self.path.open("rb") as file:
            file.seek(unit.place)
            line = file.readline()
        try:
            fields = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise UserError(f"{where}: not a JSON object ({error}); write one on each line") from error
        yield row_of(fields, where)


class ParquetFile:
    """The columns of COLUMNS, those it has. A unit is a row group."""

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        self.path, self._metadata = path, file.metadata
        self._columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        if not {"messages", "tokens"} & set(self._columns):
            raise UserError(f"{path} has the columns {file.schema_arrow.names}; it needs messages, or tokens and agent")

    def units(self) -> Iterator[Unit]:
        row = 1
        for group in range(self._metadata.num_row_groups):
            yield Unit(group, row)
            row += self._metadata.row_group(group).num_rows

    def read(self, unit: Unit) -> Iterator[Row]:
        number = itertools.count(unit.row)
        with pq.ParquetFile(self.path, metadata=self._metadata) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[unit.place], columns=self._columns):
                for row in range(batch.num_rows):
                    fields = {name: _plain(batch[name][row]) for name in self._columns}
                    yield row_of(fields, f"{self.path}: row {next(number)}")


def _plain(cell: pa.Scalar) -> object:
    """Lists of numbers as arrays: as Python objects, millions of tokens take a hundred times the memory."""
    if cell.is_valid and isinstance(cell, pa.ListScalar) and not pa.types.is_nested(cell.type.value_type):
        return cell.values.to_numpy(zero_copy_only=False)
    return cell.as_py()


class ArchiveFile:
    """What a run sampled (klong_rl.buffer.archive), in its own tokens: training episodes that were scored.

    Each branch of an agent from outside is a row of its own. A unit is a file: one never holds a part of an episode.
    """

    COLUMNS = ("episode", "purpose", "score", "prefix", "turn", "context_start")
    TURN = ("action", "logprobs", "versions", "observation", "command", "exit_code", "seconds", "interrupted", "chain")
    BRANCH = ("follows", "prompt", "masked")  # not in files of older releases

    def __init__(self, path: Path) -> None:
        self.path = path

    def units(self) -> Iterator[Unit]:
        yield Unit(0, 1)

    def read(self, unit: Unit) -> Iterator[Row]:
        branch = [name for name in self.BRANCH if name in pq.read_schema(self.path).names]
        rows = pq.read_table(self.path, columns=[*self.COLUMNS, *self.TURN, *branch]).to_pylist()
        rows = [row for row in rows if row["turn"] is not None and row["purpose"] == "train"]
        rows.sort(key=lambda row: (row["episode"], row["turn"]))
        for episode, some in itertools.groupby(rows, key=lambda row: row["episode"]):
            first, *_ = some = list(some)
            if first["score"] is None:
                continue  # dropped: it has no outcome either
            turns = [turn_of(row) for row in some]
            if turns[0].prompt_T is not None:
                found = trajectories(episode, turns)
            else:
                pairs = ((turn.action_A, turn.observation_O) for turn in turns)
                found = iter([flat(episode, np.array(first["prefix"], np.int32), pairs)])
            for made in found:
                yield Row(f"{self.path}: episode {made.id}", made.id, first["score"], made)


def open_files(data: str, key: str) -> list[TrajectoryFile]:
    """The files that `data` names: one, those in a folder, or those of a pattern. `key` is the setting it came from."""
    path = Path(data)
    if path.is_dir():
        paths = sorted([*path.glob("*.jsonl"), *path.glob("*.parquet")])
    else:
        paths = [path] if path.is_file() else sorted(map(Path, glob.glob(data, recursive=True)))
    if not paths:
        raise UserError(f"{key}={data} names no .jsonl or .parquet file; give a file, a folder or a pattern in quotes")
    return [_open(path, key) for path in paths]


def _open(path: Path, key: str) -> TrajectoryFile:
    if path.suffix == ".jsonl":
        return JsonlFile(path)
    if path.suffix != ".parquet":
        raise UserError(f"{key}: {path} is neither .jsonl nor .parquet; convert it to one of the two")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{key}: {path} can't be read as Parquet ({error}); write it again") from error
    with file:
        return ArchiveFile(path) if "context_start" in file.schema_arrow.names else ParquetFile(path, file)


class DataSet:
    """All rows of some files by unit. `units_U3` holds [file, place, row] of each unit, int64."""

    def __init__(self, files: Sequence[TrajectoryFile], min_score: float | None) -> None:
        self._files, self._min_score = files, min_score
        found = ((number, *unit) for number, file in enumerate(files) for unit in file.units())
        self.units_U3 = np.fromiter(found, np.dtype((np.int64, 3)))

    def __len__(self) -> int:
        """Units."""
        return len(self.units_U3)

    def fingerprint(self) -> list[tuple[str, int]]:
        """Name and size of each file: by these a run knows its data again."""
        return [(file.path.name, file.path.stat().st_size) for file in self._files]

    def rows(self, unit: int) -> Iterator[tuple[str, Row]]:
        """A name that is unique in the data set, and the row, of those that scored enough."""
        file, place, first = self.units_U3[unit].tolist()
        for number, row in enumerate(self._files[file].read(Unit(place, first))):
            if self._min_score is not None and row.score is None:
                raise bad(row.where, "score", f"is missing and min_score={self._min_score:g} asks for it; add it")
            if self._min_score is None or row.score >= self._min_score:
                yield f"{file}.{first + number}", row

    def check(self, look: Callable[[Row], None]) -> int:
        """`look` at every row; how many there are. Raises UserError on the first that is bad, or if there is none."""
        count = 0
        for unit in range(len(self)):
            for _, row in self.rows(unit):
                look(row)
                count += 1
        if count == 0:
            scored = "" if self._min_score is None else f" with a score of min_score={self._min_score:g} or more"
            names = ", ".join(name for name, _ in self.fingerprint()[:3])
            raise UserError(f"{names}: there is no trajectory{scored}; name other files, or lower min_score")
        return count
