"""What this project adds to vLLM and changes in it, in each process of an engine: `load` is the entry point of
`vllm.general_plugins` (pyproject.toml). vLLM may call it more than once in a process.

Added: the ways of weights (actors.weight_transfer). Changed, written against vLLM 0.26 to 0.32:

**A reader that waits sleeps.** On a CPU an engine's core and its worker are two processes that talk through shared
memory, and a reader of it calls sched_yield in a loop for a second after each message (`SpinCondition` of
vllm.distributed.device_communicators.shm_broadcast): the core all the while the worker computes, the worker from one
request to the next. Where the cores are few, and the learner's and the sandboxes' too, that is a core they lack. So
here it waits for the writer's notification at once, as vLLM's own does after that second. It looks again each NAP_MS
meanwhile, since of two notifications in quick succession the socket may drop the second (its high-water mark is 1).
With GPUs, whose hosts have cores to spare and whose steps are shorter, all stays as it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from actors import weight_transfer

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

NAP_MS = 1  # small beside a step on a CPU, 10 ms and more


def load() -> None:
    from vllm.platforms import current_platform

    weight_transfer.register()
    if current_platform.is_cpu():
        nap_while_waiting()


def nap_while_waiting() -> None:
    """Replace the wait of all readers in this process."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    if hasattr(SpinCondition, "wait_as_vllm"):
        return
    SpinCondition.wait_as_vllm, SpinCondition.wait = SpinCondition.wait, _wait


def _wait(self: SpinCondition, timeout_ms: int | None = None) -> None:
    if self.busy_loop_s:  # vLLM's: so long a reader is expected to be needed again soon
        self.nap_s, self.busy_loop_s = self.busy_loop_s, 0.0
    if time.monotonic() <= self.last_read + self.nap_s:
        timeout_ms = NAP_MS if timeout_ms is None else min(NAP_MS, timeout_ms)
    self.wait_as_vllm(timeout_ms)
