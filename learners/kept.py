"""The log-probs of a step's targets, written beside what the rank does next (klong_rl.learned)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from klong_rl.learned import write_learned
from learners.forward import Batch, of_each_window


class Kept:
    """Of one rank: it writes where it holds the log-probs, and is the first of those that hold the same."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._writer = ThreadPoolExecutor(1, "logprobs")
        self._under_way: Future | None = None

    def keep(self, step: int, batches: Sequence[Batch]) -> None:
        """Copy them to the host and begin to write. Raises what the write of the step before raised."""
        from megatron.core import parallel_state

        if parallel_state.get_tensor_model_parallel_rank() > 0 or parallel_state.get_context_parallel_rank() > 0:
            return
        logprobs: dict[str, np.ndarray] = {}
        for batch in batches:
            if batch.learned_logprobs_N is None:  # another pipeline stage has them
                return
            names = (window.id for window in batch.windows)
            logprobs |= dict(zip(names, of_each_window(batch, batch.learned_logprobs_N), strict=True))
        if self._under_way is not None:
            self._under_way.result()
        self._under_way = self._writer.submit(write_learned, self._folder, step, self._rank, logprobs)
