"""The loop of a fine-tuning: batches in, checkpoints and metrics out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from klong_rl.buffer import WindowRef
from klong_rl.checkpoints import Checkpoints, Saver
from klong_rl.fine_tuning.config import SftConfig
from klong_rl.fine_tuning.stream import Batch, Position, WindowStream
from klong_rl.step_lines import StepLines
from klong_rl.types import Window

METRICS_FILE = "metrics.jsonl"


class SftState(msgspec.Struct, kw_only=True):
    """Where a fine-tuning stands: written with each checkpoint."""

    step: int = 0
    position: Position = Position()
    data: list[tuple[str, int]] = []  # name and size of each file it reads
    tokens: int = 0  # trained, context included


class SftMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One step. Losses are in nats a target token; `eval_loss` is null where nothing was evaluated.

    `tokens` are those of the step's windows, `targets` those that were learned. `step_s` is without evaluation.
    """

    step: int
    loss: float | None
    eval_loss: float | None = None
    grad_norm: float | None
    learning_rate: float
    windows: int
    tokens: int
    targets: int
    epochs: float
    step_s: float


def mean_loss(learner: Any, held_out: Sequence[Window]) -> float:
    """Of the target tokens, in nats."""
    logprobs = learner.logprobs([WindowRef.of(window) for window in held_out], held_out, temperature=1.0)
    total = sum(float(logprobs_T.sum()) for logprobs_T in logprobs.values())
    return -total / sum(window.n_targets() for window in held_out)


class SftTraining:
    """One life of a learner, from `state` to the end of the data."""

    def __init__(
        self,
        config: SftConfig,
        run_dir: Path,
        checkpoints: Checkpoints,
        learner: Any,
        stream: WindowStream,
        held_out: Sequence[Window],
        state: SftState,
        tell: Callable[[SftMetrics], None],
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._saver = Saver(checkpoints, learner)
        self._learner = learner
        self._stream = stream
        self._held_out = held_out
        self.state = state
        self._tell = tell

    def run(self) -> None:
        """Train on what is left of the stream; the last step has a checkpoint and an evaluation. Blocks."""
        self._lines = StepLines(self._run_dir / METRICS_FILE, SftMetrics, self.state.step)
        try:
            left = self._config.steps - self.state.step if self._config.steps else None
            # One ahead, so that it is known which one is the last.
            ahead = itertools.pairwise(itertools.chain(itertools.islice(self._stream, left), [None]))
            for batch, following in ahead:
                self._after(batch, self._learner.sft_step(batch.windows), is_last=following is None)
        finally:
            self._lines.close()

    def _after(self, batch: Batch, learned: dict[str, float], is_last: bool) -> None:
        state, step = self.state, self.state.step + 1
        state.step, state.position = step, batch.after
        state.tokens += int(learned["tokens"])
        evaluates = bool(self._held_out) and (is_last or step % self._config.evaluate_every == 0)
        metrics = SftMetrics(
            step=step,
            loss=learned["loss"],
            eval_loss=mean_loss(self._learner, self._held_out) if evaluates else None,
            grad_norm=learned["grad_norm"],
            learning_rate=learned["learning_rate"],
            windows=len(batch.windows),
            tokens=int(learned["tokens"]),
            targets=int(learned["action_tokens"]),
            epochs=batch.epochs,
            step_s=learned["step_s"],
        )
        self._lines.write(metrics)
        self._tell(metrics)
        if is_last or step % self._config.learner.checkpoint_every == 0:
            self._saver.finish(wait=True)
            self._lines.sync()
            self._saver.begin(state)
        self._saver.finish(wait=is_last or not self._config.learner.async_checkpoints)
