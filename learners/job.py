"""What one learner group is built from: the user's settings, and what the run decides. Plain and picklable."""

from __future__ import annotations

import os
from dataclasses import dataclass

from klong_rl.config import LearnerConfig
from learners.layout import ParallelLayout


@dataclass(frozen=True)
class LearnerJob:
    """`model` is a Hugging Face folder. `temperature` is the sampler's: log-probs are taken at it."""

    model: str
    learner: LearnerConfig
    temperature: float = 1.0
    pad_to: int = 16  # row lengths are a multiple of it
    collective_timeout_s: float = 600.0  # how long a collective waits for the other ranks
    seed: int = 0
    logprobs: str = ""  # folder in which the log-probs of each step are kept (klong_rl.learned); "": they are not

    @property
    def layout(self) -> ParallelLayout:
        return ParallelLayout.of(self.learner.layout)

    @property
    def window_pad(self) -> int:
        """Window lengths are a multiple of it: context ranks take two pieces of each window."""
        return 2 * self.layout.context if self.layout.context > 1 else 1

    @property
    def threads(self) -> int:
        """CPU threads of one rank; by default an equal share of the machine's cores."""
        return self.learner.num_threads or max(1, (os.cpu_count() or 1) // self.layout.world)
