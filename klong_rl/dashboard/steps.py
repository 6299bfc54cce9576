"""The numbers of a run's learner steps as columns; a file that has not changed is not read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from klong_rl.monitor.metrics import METRICS_FILE, read_metrics, read_summary


class Steps:
    """`metrics.jsonl` and `summary.json` of one run. Blocking."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._read: tuple[tuple[int, int], dict[str, list]] | None = None

    def columns(self) -> dict[str, list]:
        """By name, a value a step; None where a step has none. `step` is one of them."""
        path = self._run_dir / METRICS_FILE
        if not path.exists():
            return {"step": []}
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if self._read is None or self._read[0] != stamp:
            self._read = (
                stamp,
                columns_of([{"step": each.step} | each.scalars() for each in read_metrics(self._run_dir)]),
            )
        return self._read[1]

    def summary(self) -> dict[str, Any] | None:
        """What the run came to; None before it has."""
        summary = read_summary(self._run_dir)
        return None if summary is None else msgspec.to_builtins(summary)


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list]:
    """Rows with their own keys as columns of one length."""
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names} or {"step": []}
