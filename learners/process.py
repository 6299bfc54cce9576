"""One process's place among the ranks: the rendezvous, and Megatron's process groups."""

from __future__ import annotations

import logging
import warnings
from datetime import timedelta

import torch
from torch.distributed import TCPStore

from learners import cpu, gpu
from learners.job import LearnerJob

Address = tuple[str, int]  # host and port of the rendezvous


def open_store(host: str, job: LearnerJob) -> TCPStore:
    """The rendezvous, served by this process on a port that the system picks (`store.port`)."""
    return TCPStore(host, 0, job.layout.world, is_master=True, wait_for_workers=False, timeout=_timeout(job))


def connect_store(address: Address, job: LearnerJob) -> TCPStore:
    """The rendezvous of another process; torch's DistStoreError if it isn't there within the collective timeout."""
    return TCPStore(*address, job.layout.world, is_master=False, timeout=_timeout(job))


def join(job: LearnerJob, rank: int, store: TCPStore) -> torch.device:
    """Make this process rank `rank`; returns its device. Waits for all ranks, at most the collective timeout."""
    _quiet()
    on_cpu = job.learner.device == "cpu"
    if on_cpu:
        cpu.install(job.threads)
        device = cpu.CPU
    else:
        device = gpu.install(job.learner.gpu_memory, job.learner.dtype)
    torch.distributed.init_process_group(
        "gloo" if on_cpu else "nccl", store=store, rank=rank, world_size=job.layout.world, timeout=_timeout(job)
    )
    lay_out(job)
    return device


def lay_out(job: LearnerJob) -> None:
    """Megatron's process groups for the layout of `job`, of all ranks."""
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        job.layout.tensor,
        job.layout.pipeline,
        context_parallel_size=job.layout.context,
        expert_model_parallel_size=job.layout.expert,
        expert_tensor_parallel_size=job.layout.expert_tensor,
        distributed_timeout_minutes=max(1, round(job.collective_timeout_s / 60)),
    )
    torch.manual_seed(job.seed)
    tensor_parallel.model_parallel_cuda_manual_seed(job.seed)


def _quiet() -> None:
    """Keep out of the program's output what Megatron 0.16 says of itself and no user can act on."""
    # Its use of names that torch will rename, and which optional kernels it does without.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|megatron\.|learners\.cpu")
    warnings.filterwarnings("ignore", message=".*(Apex (is|are) not installed|full scope is deprecated)")
    # It looks at `.grad` of views, on purpose.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    logging.getLogger("megatron.core.rerun_state_machine").setLevel(logging.ERROR)


def _timeout(job: LearnerJob) -> timedelta:
    return timedelta(seconds=job.collective_timeout_s)
