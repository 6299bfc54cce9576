"""Whole-or-absent checkpoints of a learner, by Megatron's distributed checkpointing (`torch_dist`), beside training.

    begin: gather what is sharded, plan ──▶ fork a writer in each rank ──▶ training goes on
    finish: writers of all ranks done ──▶ metadata ──▶ rename            (AsyncCallsQueue: collectives)

A checkpoint holds weights, optimizer state, schedule, random state and the step, as they were at `begin`. It is written
beside its final name and renamed by rank 0 after every rank has written: a folder that has the name is complete. What
is loaded is bit for bit what was saved, and since shards carry their place in the whole tensor, another layout may
load it.

A writer is a fork of the rank (learners.writer): it has the rank's host memory as it was at that moment, and what
training changes meanwhile the kernel copies. Tensors on a GPU are copied to the host before.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from klong_rl.durable import fsync, fsync_tree
from klong_rl.errors import UserError
from learners import writer
from learners.model import Model

# Shards in the shape of the whole tensors: loads under any data, tensor or pipeline size.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


class Saving:
    """One rank's part in writing checkpoints, one at a time. All methods but `under_way` are collectives."""

    def __init__(self) -> None:
        from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

        self._queue = AsyncCallsQueue()
        self._folder: Path | None = None

    def begin(self, model: Model, folder: Path, step: int, beside: writer.Write | None = None) -> None:
        """Begin to write the checkpoint `folder`; the model may change once this returns.

        `beside` is run in a process of its own, on the ranks that give one, and is part of the checkpoint. Raises
        FileExistsError if the folder is there, RuntimeError while another checkpoint is under way.
        """
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

        if self._folder is not None:
            raise RuntimeError(f"checkpoint {self._folder} is still being written; finish it before {folder}")
        if folder.exists():
            raise FileExistsError(f"checkpoint {folder} is there already; a step is saved once")
        partial = _partial(folder)
        if torch.distributed.get_rank() == 0:
            # What a killed process left behind.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        torch.distributed.barrier()
        self._folder = folder
        request = dist_checkpointing.save(_state(model, step, is_loading=False), str(partial), async_sharded_save=True)
        if request.async_fn is not None:
            request = request._replace(async_fn=writer.in_fork(request.async_fn))
        self._queue.schedule_async_request(request)
        write, check = writer.reported(beside) if beside else (None, None)
        self._queue.schedule_async_request(AsyncRequest(write, (), [check] if check else []))

    def finish(self, wait: bool) -> bool:
        """Whether no checkpoint is under way any more: where all ranks have written, the folder is made durable.

        With `wait` it is so in any case. OSError, which names the folder, on the rank that knows why it wasn't written;
        the remains of such a folder are the caller's to remove.
        """
        from torch.distributed.checkpoint import CheckpointException

        if self._folder is None:
            return True
        try:
            self._queue.maybe_finalize_async_calls(blocking=wait)
        except CheckpointException as error:
            if not error.failures:
                return True  # rank 0 knows
            failed, (reason, _) = next(iter(error.failures.items()))
            raise OSError(f"checkpoint {self._folder} could not be written: rank {failed}: {reason}") from error
        if self._queue.get_num_unfinalized_calls():
            return False
        folder, self._folder = self._folder, None
        if torch.distributed.get_rank() == 0:
            fsync_tree(_partial(folder))
            _partial(folder).rename(folder)
            fsync(folder.parent)
        torch.distributed.barrier()
        return True


def load(model: Model, folder: Path) -> int:
    """Make `model` the one that was saved; returns its step. A collective. UserError if the folder is not there."""
    from megatron.core import dist_checkpointing

    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*"))
        raise UserError(f"checkpoint {folder} does not exist; in {folder.parent} there are {there}")
    state = dist_checkpointing.load(_state(model, 0, is_loading=True), str(folder))
    for i, chunk in enumerate(model.unwrapped()):
        chunk.load_state_dict(state[f"model{i}"])
    model.optimizer.load_state_dict(state["optimizer"])
    model.scheduler.num_steps = 0  # what is loaded is added to it
    model.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    return state["step"]


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _state(model: Model, step: int, is_loading: bool) -> dict[str, Any]:
    chunks = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(model.unwrapped())}
    weights = chunks["model0"] if len(chunks) == 1 else chunks
    return {
        **chunks,
        "optimizer": model.optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_SHARDING),
        "scheduler": model.scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "step": step,
    }
