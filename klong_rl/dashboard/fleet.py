"""The fleet as the driver tells it in RUN/fleet.json (klong_rl.monitor.fleet_file), and its last minutes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import Any

from klong_rl.monitor.fleet_file import read_fleet

EVERY_S = 1.0
KEPT_S = 300
STALE_S = 10.0  # a driver tells each second; one that is busy, a few seconds late


class FleetHistory:
    """Reads the file as long as `keep` runs."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.newest: dict[str, Any] = {}
        self._looks: deque[dict[str, Any]] = deque(maxlen=int(KEPT_S / EVERY_S))

    def is_fresh(self) -> bool:
        """Whether a driver told it a moment ago: the run is up."""
        return time.time() - self.newest.get("at", 0.0) < STALE_S

    async def keep(self) -> None:
        """Follow the file until cancelled."""
        while True:
            self.take(read_fleet(self._run_dir))
            await asyncio.sleep(EVERY_S)

    def take(self, look: dict[str, Any]) -> None:
        """A look, unless it is the last one again."""
        if look and look["at"] != self.newest.get("at"):
            self.newest = look
            self._looks.append(look)

    def as_json(self) -> dict[str, Any]:
        """The newest look, and what was seen of each engine before: lists of equal length, oldest first."""
        looks = list(self._looks)
        series: dict[str, dict[str, list]] = {}
        for engine in self.newest.get("engines", []):
            seen = [next((e for e in look["engines"] if e["actor"] == engine["actor"]), {}) for look in looks]
            names = ("kv_use", "tokens_per_s", "episodes", "waiting")
            series[engine["actor"]] = {name: [each.get(name) for each in seen] for name in names}
        return {"up": self.is_fresh(), "now": self.newest, "at": [look["at"] for look in looks], "engines": series}
