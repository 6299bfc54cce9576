"""Whole-or-absent checkpoints of a learner, by Megatron's distributed checkpointing (`torch_dist`).

A checkpoint holds weights, optimizer state, schedule, random state and the step. It is written beside its final name,
fsynced, and renamed by rank 0 after every rank has written: a folder that has the name is complete. What is loaded is
bit for bit what was saved, and since shards carry their place in the whole tensor, another layout may load it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from klong_rl.durable import fsync, fsync_tree
from klong_rl.errors import UserError
from learners.model import Model

# Shards in the shape of the whole tensors: loads under any data, tensor or pipeline size.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(model: Model, folder: Path, step: int) -> None:
    """Write the checkpoint `folder`. A collective. FileExistsError if the folder is there."""
    from megatron.core import dist_checkpointing

    partial = folder.with_name(folder.name + ".partial")
    if folder.exists():
        raise FileExistsError(f"checkpoint {folder} is there already; a step is saved once")
    if torch.distributed.get_rank() == 0:
        # What a killed process left behind.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    torch.distributed.barrier()
    dist_checkpointing.save(_state(model, step, is_loading=False), str(partial))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        fsync_tree(partial)
        partial.rename(folder)
        fsync(folder.parent)
    torch.distributed.barrier()


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
