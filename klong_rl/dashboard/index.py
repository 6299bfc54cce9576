"""The episodes of a run as one table: a row an episode, read from the archive a file at a time, filtered and paged.

Files of the archive never change, so each is read once; of a trajectory only what a row shows is kept in memory
(some 200 bytes an episode).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from klong_rl.buffer.archive import ArchiveFiles

ARCHIVED = "archived"  # the state of an episode that a file holds; of others it is the buffer's

ROWS = pa.schema(
    {
        "episode": pa.string(),
        "group": pa.string(),
        "task": pa.string(),
        "stage": pa.int32(),
        "purpose": pa.string(),
        "state": pa.string(),
        "outcome": pa.string(),  # null: under way, or dropped
        "dropped": pa.string(),  # why
        "score": pa.float64(),
        "advantage": pa.float64(),  # mean over its turns that were trained
        "turns": pa.int64(),
        "tokens": pa.int64(),  # that it sampled; null while it is under way
        "seconds": pa.float64(),  # active
        "oldest": pa.int32(),  # policy version that sampled one of its tokens
        "newest": pa.int32(),
        "step": pa.int32(),  # that trained it
        "file": pa.int32(),  # of the archive, by its place in the index; null where none holds it
    }
)
_SHARED = ("episode", "group", "task", "stage", "purpose", "outcome", "dropped", "score", "step")
READ = (*_SHARED, "turn", "seconds", "versions", "advantage")
FACETS = ("stage", "purpose", "state", "outcome")
MOST_ROWS = 500  # of one page


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to show of the table. Texts: "" for any; `text` is looked for in episode, task and reason of a drop."""

    stage: int | None = None
    purpose: str = ""
    state: str = ""
    outcome: str = ""
    text: str = ""
    step: int | None = None
    min_score: float | None = None
    max_score: float | None = None
    min_turns: int | None = None
    sort: str = ""  # a column of ROWS; "": as they were admitted and archived, newest first
    descending: bool = True
    offset: int = 0
    limit: int = 100


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """`total` rows match; `rows` are those from the offset on, keyed as ROWS."""

    total: int
    rows: list[dict[str, Any]]


def rows_of_file(table: pa.Table, file: int) -> pa.Table:
    """ROWS of one file's turns. Rows of one episode lie next to each other."""
    if table.num_rows == 0:
        return ROWS.empty_table()
    codes = table["episode"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    columns = {name: table[name].combine_chunks().take(pa.array(first)) for name in _SHARED}
    n_tokens = np.asarray(pc.fill_null(pc.list_value_length(table["versions"].combine_chunks()), 0))
    tokens = np.add.reduceat(n_tokens, first)
    oldest, newest = _spans(table["versions"].combine_chunks().flatten().to_numpy(), tokens)
    columns |= {
        "state": pa.repeat(pa.scalar(ARCHIVED), len(first)),
        "advantage": _means(table["advantage"], first),
        "turns": np.add.reduceat(np.asarray(pc.is_valid(table["turn"]).combine_chunks()).astype(np.int64), first),
        "tokens": tokens.astype(np.int64),
        "seconds": np.add.reduceat(np.asarray(pc.fill_null(table["seconds"], 0.0)), first),
        "oldest": oldest,
        "newest": newest,
        "file": np.full(len(first), file, np.int32),
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in ROWS}, ROWS)


def _spans(versions: np.ndarray, counts: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Smallest and largest of each run of `counts` versions; null for an empty one."""
    some = counts > 0
    starts = (np.cumsum(counts) - counts)[some]
    low, high = np.zeros(len(counts), np.int32), np.zeros(len(counts), np.int32)
    if len(starts):
        low[some], high[some] = np.minimum.reduceat(versions, starts), np.maximum.reduceat(versions, starts)
    return pa.array(low, mask=~some), pa.array(high, mask=~some)


def _means(column: pa.ChunkedArray, first: np.ndarray) -> pa.Array:
    known = np.asarray(pc.is_valid(column).combine_chunks()).astype(np.int64)
    counts = np.add.reduceat(known, first)
    sums = np.add.reduceat(np.asarray(pc.fill_null(column, 0.0)), first)
    return pa.array(sums / np.maximum(counts, 1), mask=counts == 0)


def select(table: pa.Table, query: Query) -> Page:
    """The page of `table` that `query` asks for."""
    found = table
    keep = _condition(table, query)
    if keep is not None:
        found = table.filter(keep)
    if query.sort in ROWS.names:
        order = "descending" if query.descending else "ascending"
        place = pc.sort_indices(found.select([query.sort]), [(query.sort, order)])  # what has no value comes last
    else:
        place = pa.array(np.arange(found.num_rows)[:: -1 if query.descending else 1])
    page = place.slice(max(0, query.offset), min(max(0, query.limit), MOST_ROWS))
    return Page(total=found.num_rows, rows=found.take(page).to_pylist())


def _condition(table: pa.Table, query: Query) -> pa.ChunkedArray | None:
    parts = [pc.equal(table[name], getattr(query, name)) for name in FACETS if getattr(query, name) not in ("", None)]
    if query.step is not None:
        parts.append(pc.equal(table["step"], query.step))
    if query.min_score is not None:
        parts.append(pc.greater_equal(table["score"], query.min_score))
    if query.max_score is not None:
        parts.append(pc.less_equal(table["score"], query.max_score))
    if query.min_turns is not None:
        parts.append(pc.greater_equal(table["turns"], query.min_turns))
    if query.text:
        places = [
            pc.match_substring(table[name], query.text, ignore_case=True) for name in ("episode", "task", "dropped")
        ]
        parts.append(pc.or_kleene(pc.or_kleene(*places[:2]), pc.fill_null(places[2], False)))
    keep = None
    for part in parts:
        keep = part if keep is None else pc.and_kleene(keep, part)
    return keep


def facets(table: pa.Table) -> dict[str, dict[str, int]]:
    """How many episodes there are of each stage, purpose, state and outcome."""
    counted = {name: table[name].drop_null().value_counts().to_pylist() for name in FACETS}
    return {
        name: {str(each["values"]): each["counts"] for each in sorted(found, key=lambda each: each["values"])}
        for name, found in counted.items()
    }


class EpisodeIndex:
    """Of the archive in one run directory. Blocking; one thread at a time calls `read_more`."""

    def __init__(self, run_dir: Path) -> None:
        self._files = ArchiveFiles(run_dir / "archive")
        self._paths: list[Path] = []
        self._tables: list[pa.Table] = []
        self.table: pa.Table = ROWS.empty_table()
        self._ids: set[str] = set()

    @property
    def n_files(self) -> int:
        return len(self._paths)

    def unread(self) -> list[Path]:
        """Files that came since the last reading, in the order in which they were written."""
        known = set(self._paths)
        return [path for path in self._files.paths() if path not in known]

    def read_more(self, paths: Sequence[Path]) -> None:
        """Take these files in."""
        for path in paths:
            rows = rows_of_file(pq.read_table(path, columns=list(READ)), len(self._paths))
            self._paths.append(path)
            self._tables.append(rows)
            self._ids.update(rows["episode"].to_pylist())
        if paths:
            self.table = pa.concat_tables(self._tables).combine_chunks()

    def __contains__(self, episode: str) -> bool:
        return episode in self._ids

    def file_of(self, episode: str) -> Path | None:
        """The file that holds an episode, if one does."""
        if episode not in self._ids:
            return None
        place = pc.index(self.table["episode"], episode).as_py()
        return self._paths[self.table["file"][place].as_py()]

    def row(self, episode: str) -> dict[str, Any]:
        """The row of an episode that a file holds."""
        return self.table.slice(pc.index(self.table["episode"], episode).as_py(), 1).to_pylist()[0]

    def group(self, group: str) -> list[dict[str, Any]]:
        """The rows of a group."""
        return self.table.filter(pc.equal(self.table["group"], group)).to_pylist()
