"""Many parts start at once, since an engine takes minutes to come up; one at a time measures, in a given order.

    start ──▶ set up (beside the others) ──▶ wait for the turn ──▶ measure alone ──▶ next

A part's turn comes when all parts before it are over: done with measuring, ended, or given up at their deadline.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK_S = 0.05
WAIT_S = 900.0  # for a turn: longer than all parts' deadlines together should be


@dataclass(frozen=True)
class Turns:
    """The turn of `name` among `order`, known to all processes by files in `folder`. Results go there too."""

    folder: Path
    order: tuple[str, ...]
    name: str

    @contextlib.contextmanager
    def alone(self, is_last: bool = False) -> Iterator[None]:
        """Inside, no other part measures. TimeoutError after WAIT_S, naming who is waited for.

        What is last in its process is over when the process has ended: its GPU memory is free then.
        """
        until = time.monotonic() + WAIT_S
        for other in self.order[: self.order.index(self.name)]:
            while not self._over(other).exists():
                if time.monotonic() > until:
                    raise TimeoutError(f"{self.name} waited {WAIT_S:g} s for {other} to be over")
                time.sleep(LOOK_S)
        try:
            yield
        finally:
            if not is_last:
                self.end()

    def end(self) -> None:
        """This part is over: the next may measure."""
        self._over(self.name).touch()

    def write(self, result: Any) -> None:
        """Keep what is known so far, whole, whatever comes next."""
        path = self.folder / f"{self.name}.json"
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)

    def _over(self, name: str) -> Path:
        return self.folder / f"{name}.over"
