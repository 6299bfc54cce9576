"""Once a second: look at the actors, tell what was seen, and give each as many episodes as its engine bears."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from klong_rl.buffer import Buffer
from klong_rl.monitor.fleet_file import FleetFile
from klong_rl.pacing import Pacing
from klong_rl.results import RunLog

EVERY_S = 1.0


async def keep_pace(run_dir: Path, fleet: Any, buffer: Buffer, log: RunLog, pacing: Pacing) -> None:
    """Until it is cancelled. `fleet` is a klong_rl.fleet.Fleet, or what stands in for one."""
    told = FleetFile(run_dir)
    while True:
        began = time.monotonic()
        status, counts = await fleet.status(), await buffer.counts()
        slots = pacing.slots.decide(status["engines"], counts.states.get("sealed", 0), began)
        await fleet.allow(slots)
        log.fleet(status, counts, pacing.metrics(), await buffer.memory())
        told.write(status, slots, pacing.metrics(), *log.at)
        await asyncio.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))
