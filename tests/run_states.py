"""Where a run may stand, in a few words."""

from __future__ import annotations

from typing import Any

from klong_rl.checkpoints import RunState
from klong_rl.curriculum import CurriculumState


def standing(stage: int = 1, stage_step: int = 0, finished: bool = False, **state: Any) -> RunState:
    return RunState(curriculum=CurriculumState(stage=stage, stage_step=stage_step, finished=finished), **state)
