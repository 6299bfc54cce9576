"""What the archive of a run says of its episodes, as far as judging is concerned."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.dataset as ds

COLUMNS = ["episode", "stage", "purpose", "turn", "command", "score", "evidence"]


@dataclass
class ArchivedEpisode:
    """`commands` by turn; `record` is the SHA-256 of its verdict's record, "" where it has none."""

    stage: int
    purpose: str
    score: float | None
    record: str = ""
    commands: list[str] = field(default_factory=list)


def archived(run_dir: Path) -> dict[str, ArchivedEpisode]:
    """The episodes of RUN/archive by id, in order of their names; none where there is no archive."""
    folder = run_dir / "archive"
    if not list(folder.glob("groups-*.parquet")):
        return {}
    rows = ds.dataset(folder, format="parquet").to_table(COLUMNS).to_pylist()
    episodes: dict[str, ArchivedEpisode] = {}
    for row in sorted(rows, key=lambda row: (row["episode"], -1 if row["turn"] is None else row["turn"])):
        known = ArchivedEpisode(row["stage"], row["purpose"], row["score"])
        episode = episodes.setdefault(row["episode"], known)
        if row["evidence"] is not None:
            episode.record = dict(row["evidence"]).get("record", "")
        if row["turn"] is not None:
            episode.commands.append(row["command"])
    return episodes
