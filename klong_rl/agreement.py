"""Do sampler and learner agree? Measured in the run itself, at every step, on the same tokens and the same weights.

in the step         |learner - sampler| on the action tokens that the current weights sampled, from the training
                    forward pass: the decode path, KV cache and all. None of them may be in a batch.
after the publish   |learner - engine| on a few windows just trained, under the new weights: prefill, and proof that
                    the weights arrived. There are always some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from klong_rl.blocking import in_thread
from klong_rl.buffer import Buffer, WindowRef

WINDOWS_MEASURED = 4  # after each publish: some hundred tokens, a fraction of a second


@dataclass(frozen=True)
class Gap:
    """|log-prob difference| in nats over `tokens` tokens."""

    tokens: float = 0.0
    total: float = 0.0
    max: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else 0.0

    def __add__(self, other: Gap) -> Gap:
        return Gap(self.tokens + other.tokens, self.total + other.total, max(self.max, other.max))

    @classmethod
    def of_step(cls, learned: Mapping[str, float]) -> Gap:
        """From the metrics of a learner step."""
        tokens = learned["logprob_gap_tokens"]
        return cls(tokens, tokens * learned["logprob_gap_mean"], learned["logprob_gap_max"])

    @classmethod
    def between(cls, ours: np.ndarray, theirs: np.ndarray) -> Gap:
        """Of two arrays of log-probs, float32 of one shape."""
        difference = np.abs(ours - theirs)
        return cls(float(difference.size), float(difference.sum()), float(difference.max(initial=0.0)))


async def measure_gap(buffer: Buffer, fleet: Any, learner: Any, refs: Sequence[WindowRef]) -> Gap:
    """Learner against every engine on the shortest windows of `refs`, both under the weights just published."""
    chosen = sorted(refs, key=lambda ref: ref.n_tokens)[:WINDOWS_MEASURED]
    windows = await buffer.windows([ref.id for ref in chosen])
    ours = await in_thread(learner.logprobs, chosen, windows, 1.0, stop=learner.shutdown)
    gap = Gap()
    for window in windows:
        targets_T = window.targets_T == 1
        for theirs in await fleet.logprobs(window.tokens_T):
            gap += Gap.between(ours[window.id][targets_T], theirs[targets_T[1:]])
    return gap
