"""Checkpoints of a run: whole or absent, the newest one found again.

checkpoints/step-000012/megatron/     weights, optimizer, schedule, random state (learners)
                        hf/           the same weights, as transformers and vLLM load them
                        state.json    where the run stood

What a learner writes beside its training grows in .step-000012.XXXXXXXX.partial, and has the name when it is complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from klong_rl.curriculum import CurriculumState
from klong_rl.durable import fsync, fsync_tree
from klong_rl.lineage import Lineage, distance, within_reach

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


class Begun(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    folder: Path


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.folder = run_dir / "checkpoints"
        self._keep = keep
        self.discard()  # of a launch that was killed as it wrote

    def begin(self, state: S, start: Callable[[Path], None]) -> Begun:
        """Have `start` begin to fill the folder of a checkpoint; `state` goes into it as it is now."""
        # A name of its own: the writers of a learner that was killed may live a moment longer.
        folder = self.folder / f".step-{state.step:06d}.{secrets.token_hex(4)}.partial"
        folder.mkdir(parents=True)
        (folder / STATE_FILE).write_bytes(_readable(state))
        start(folder)
        return Begun(state.step, folder)

    def finish(self, begun: Begun) -> Path:
        """Make durable a checkpoint that is all written; older ones than `keep` go."""
        fsync_tree(begun.folder)
        final = self.folder / f"step-{begun.step:06d}"
        begun.folder.rename(final)
        fsync(self.folder)
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def discard(self) -> None:
        """Remove what was begun and will not be finished."""
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def update_state(self, state: S) -> None:
        """Replace the newest checkpoint's state: what was learned about it (evaluations) since it was written."""
        path = self.newest() / STATE_FILE
        if (step := self.state(path.parent, type(state)).step) != state.step:
            raise ValueError(f"{path} is of step {step}, the state to note there of step {state.step}")
        partial = path.with_suffix(".new")
        partial.write_bytes(_readable(state))
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


class Saver:
    """Writes a learner's checkpoints beside its training, one at a time.

    `learner` is a learners.group.LearnerGroup. The calls block, `finish` for long only if it is to wait.
    """

    def __init__(self, checkpoints: Checkpoints, learner: Any) -> None:
        self._checkpoints = checkpoints
        self._learner = learner
        self._begun: Begun | None = None

    @property
    def under_way(self) -> bool:
        return self._begun is not None

    def begin(self, state: msgspec.Struct) -> None:
        """Begin the checkpoint of the learner, and of `state`, as both are now. None may be under way."""
        self._begun = self._checkpoints.begin(state, self._learner.begin_save)

    def finish(self, wait: bool) -> int | None:
        """The step of the checkpoint under way, if it is durable now; without `wait` it may not be written yet."""
        if self._begun is None or not self._learner.finish_save(wait):
            return None
        begun, self._begun = self._begun, None
        self._checkpoints.finish(begun)
        return begun.step


def _readable(state: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(state), indent=2)
