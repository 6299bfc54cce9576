"""Where a run may stand, in a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.curriculum import CurriculumState


def standing(stage: int = 1, stage_step: int = 0, finished: bool = False, **state: Any) -> RunState:
    return RunState(curriculum=CurriculumState(stage=stage, stage_step=stage_step, finished=finished), **state)


def saved(checkpoints: Checkpoints, state: RunState) -> Path:
    """A whole checkpoint, of a learner that has no weights."""
    return checkpoints.finish(checkpoints.begin(state, lambda folder: None))
