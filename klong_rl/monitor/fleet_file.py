"""RUN/fleet.json: what the driver sees of its actors, told anew each second for whoever looks (klong_rl.dashboard).

{"at": Unix seconds, "phase": "sampling", "stage": 1, "tokens_per_s": 410.0,
 "engines": [{"actor": "rollout-0.1", "episodes": 12, "slots": 16, "waiting": 0, "kv_use": 0.4, "fits": 16,
              "ended": 83, "paused_s": 1.2, "sampled": 91000, "tokens_per_s": 410.0}],
 "sandboxes": [{"host": "unix:///var/run/docker.sock", "state": "ahead", "count": 16}],
 "pacing": {"pacing_slots": 32.0, "pacing_groups_ahead": 7.0}}                    (klong_rl.pacing)
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

FLEET_FILE = "fleet.json"


class Rates:
    """Tokens a second of each actor, from how many it had sampled at the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def of(self, sampled: Mapping[str, int], now: float) -> dict[str, float]:
        """By actor; 0 for one that was not seen before. `now` is in seconds of any clock that only grows."""
        rates = {}
        for actor, tokens in sampled.items():
            then, before = self._seen.get(actor, (now, tokens))
            rates[actor] = max(0, tokens - before) / (now - then) if now > then else 0.0
        self._seen = {actor: (now, tokens) for actor, tokens in sampled.items()}
        return rates


def sandboxes_of(censuses: Sequence[tuple[str, Mapping[str, Mapping[str, int]]]]) -> list[dict[str, Any]]:
    """A line for each host and state. `censuses`: of each process what it does with those that it holds ("running",
    "judging"), and its count by host and by "held" or "ahead" (sandboxes.base.SandboxFactory.census)."""
    total: Counter[tuple[str, str]] = Counter()
    for doing, hosts in censuses:
        for host, counts in hosts.items():
            for state, n in counts.items():
                total[host, doing if state == "held" else state] += n
    return [{"host": host, "state": state, "count": n} for (host, state), n in sorted(total.items())]


class FleetFile:
    """Writes it for one run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._rates = Rates()

    def write(
        self, status: Mapping[str, Any], slots: Mapping[str, int], pacing: Mapping[str, float], phase: str, stage: int
    ) -> None:
        """A look at the actors (klong_rl.fleet.Fleet.status), how many episodes each may run at once, and how much runs
        in all.
        """
        looks = status["engines"]
        rates = self._rates.of({look.actor: look.sampled for look in looks}, time.monotonic())
        engines = [
            msgspec.to_builtins(look) | {"slots": slots.get(look.actor, 0), "tokens_per_s": rates[look.actor]}
            for look in looks
        ]
        told = {"at": time.time(), "phase": phase, "stage": stage, "tokens_per_s": sum(rates.values())}
        write_fleet(self._run_dir, told | {"engines": engines, "sandboxes": status["sandboxes"], "pacing": pacing})


def write_fleet(run_dir: Path, look: dict[str, Any]) -> None:
    """Whole, for a reader; it need not be durable."""
    path = run_dir / FLEET_FILE
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(msgspec.json.encode(look))
    os.replace(temporary, path)


def read_fleet(run_dir: Path) -> dict[str, Any]:
    """Nothing if it was never told."""
    path = run_dir / FLEET_FILE
    return msgspec.json.decode(path.read_bytes()) if path.exists() else {}
