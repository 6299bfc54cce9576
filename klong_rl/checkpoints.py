"""Checkpoints of a run: whole or absent, the newest one found again.

checkpoints/step-000012/megatron/     weights, optimizer, schedule, random state (learners)
                        hf/           the same weights, as transformers and vLLM load them
                        state.json    where the run stood: written last
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from klong_rl.curriculum import CurriculumState
from klong_rl.durable import fsync, fsync_tree
from klong_rl.lineage import Lineage, distance, within_reach
from klong_rl.models.folder import whole_or_absent

STATE_FILE = "state.json"
S = TypeVar("S", bound=msgspec.Struct)  # what is known of a step, in a field `step` and others


class RunState(msgspec.Struct, kw_only=True):
    """Where a run stands. `step` counts finished learner steps over all stages."""

    curriculum: CurriculumState = msgspec.field(default_factory=CurriculumState)
    step: int = 0
    lineage: Lineage = {}  # surviving policy version: the learner steps its weights hold
    wall_s: float = 0.0
    evals: dict[str, float] = {}  # "cold-s3", "before-s2", "after-s2": mean held-out reward
    rewards: dict[str, list[float]] = {}  # stage: mean training reward of each step
    episodes: dict[str, int] = {}  # stage: training episodes used

    @property
    def version(self) -> int:
        """The policy version of the weights as they are."""
        return max(self.lineage)

    def staleness(self, version: int) -> int:
        """Learner updates between these weights and those of `version`."""
        return distance(self.lineage, self.step, version)

    def within_reach(self, max_staleness: int) -> tuple[int, tuple[int, ...]]:
        """The oldest version whose tokens may be trained now, and the dead versions after it whose may not."""
        return within_reach(self.lineage, self.step, max_staleness)


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.folder = run_dir / "checkpoints"
        self._keep = keep
        for partial in self.folder.glob(".*.partial"):  # of a launch that was killed as it wrote
            shutil.rmtree(partial)

    def save(self, state: S, write: Callable[[Path], None]) -> Path:
        """Have `write` fill the checkpoint's folder, then make it durable; older ones than `keep` go."""
        final = self.folder / f"step-{state.step:06d}"
        with whole_or_absent(final) as partial:
            write(partial)
            (partial / STATE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
            fsync_tree(partial)
        fsync(self.folder)
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def update_state(self, state: S) -> None:
        """Replace the newest checkpoint's state: what was learned about it (evaluations) since it was written."""
        path = self.newest() / STATE_FILE
        partial = path.with_suffix(".new")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE_FILE).exists())

    def newest(self) -> Path | None:
        found = self.all()
        return found[-1] if found else None

    @staticmethod
    def state(checkpoint: Path, kind: type[S] = RunState) -> S:
        return msgspec.json.decode((checkpoint / STATE_FILE).read_bytes(), type=kind)
