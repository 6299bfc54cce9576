"""Where a launch goes on: the newest checkpoint, the stage asked for, and a buffer that agrees with both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from klong_rl.buffer import Buffer
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.config import StageConfig
from klong_rl.curriculum import CurriculumState
from klong_rl.errors import UserError


def where_to_begin(checkpoints: Checkpoints, stages: Sequence[StageConfig], stage: int | None) -> tuple[RunState, str]:
    """The newest checkpoint's state, or a fresh one, moved to `stage` if one is asked for; and that in words.

    No words for what goes without saying: a new run at its beginning, or one that is finished.
    """
    newest = checkpoints.newest()
    state = Checkpoints.state(newest) if newest else RunState()
    at = state.curriculum
    if stage is not None and (stage != at.stage or at.finished):
        at = state.curriculum = CurriculumState(stage=stage, moves=at.moves)
        ahead = [f"{tag}-s{number}" for tag in ("before", "after") for number in range(stage, len(stages) + 1)]
        state.evals = {key: value for key, value in state.evals.items() if key not in ahead}
    if at.finished or (newest is None and stage is None):
        return state, ""
    steps = stages[at.stage - 1].steps
    place = f"at step {at.stage_step + 1} of {steps}" if at.stage_step < steps else "at its end"
    source = f"checkpoint {newest.parent.name}/{newest.name}" if newest else "the cold start"
    return state, f"entering stage {at.stage} {place}, from {source}"


async def check_same_life(buffer: Buffer, state: RunState, run_dir: Path) -> None:
    """Refuse a buffer that has seen more than the newest checkpoint: what it trained can't be given out again."""
    committed = await buffer.committed_step()
    if committed > state.step:
        raise UserError(
            f"the buffer of {run_dir} has committed step {committed}, the newest checkpoint is of step {state.step}; "
            "restore the checkpoint that is missing, or set name= to start another run"
        )


async def restore_buffer(buffer: Buffer, state: RunState) -> None:
    """Bring the buffer back to what the weights of `state` have seen.

    The leases of steps up to the checkpoint's are consumed: those weights hold them. Those of later steps are ready
    again, but for windows that are now too far from the weights: the next lease drops those.
    """
    await buffer.commit(state.step)
    await buffer.rollback(state.step)
    if not state.lineage and await buffer.policy_version():
        state.lineage[1] = 0  # the first version was the cold start's, whatever came after it and is gone
