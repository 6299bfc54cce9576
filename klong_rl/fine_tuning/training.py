"""The loop of a fine-tuning: batches in, checkpoints and metrics out. The cold start of a run takes the same steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from klong_rl.buffer import WindowRef
from klong_rl.checkpoints import Checkpoints
from klong_rl.fine_tuning.config import SftConfig
from klong_rl.fine_tuning.stream import Position, WindowStream
from klong_rl.step_lines import StepLines
from klong_rl.types import Window

METRICS_FILE = "metrics.jsonl"


class SftState(msgspec.Struct, kw_only=True):
    """Where a fine-tuning stands: written with each checkpoint."""

    step: int = 0
    position: Position = Position()
    data: list[tuple[str, int]] = []  # name and size of each file it reads
    tokens: int = 0  # trained, context included
    wall_s: float = 0.0


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


def fine_tune(
    learner: Any, batches: Iterable[Sequence[Window]], after: Callable[[Sequence[Window], dict[str, float]], None]
) -> None:
    """One step of `learner` (a learners.group.LearnerGroup) a batch; `after` is told each batch and its metrics."""
    for batch in batches:
        after(batch, learner.sft_step(batch))


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
        self._checkpoints = checkpoints
        self._learner = learner
        self._stream = stream
        self._held_out = held_out
        self.state = state
        self._tell = tell
        self._began = time.monotonic() - state.wall_s

    def run(self) -> None:
        """Train on what is left of the stream; the last step has a checkpoint and an evaluation. Blocks."""
        self._lines = StepLines(self._run_dir / METRICS_FILE, SftMetrics, self.state.step)
        try:
            fine_tune(self._learner, self._batches(), self._after)
        finally:
            self._lines.close()

    def _batches(self) -> Iterator[list[Window]]:
        left = self._config.steps - self.state.step if self._config.steps else None
        # One ahead, so that it is known which one is the last.
        ahead = itertools.pairwise(itertools.chain(itertools.islice(self._stream, left), [None]))
        for self._batch, following in ahead:
            self._is_last = following is None
            yield self._batch.windows

    def _after(self, batch: Sequence[Window], learned: dict[str, float]) -> None:
        state, step = self.state, self.state.step + 1
        state.step, state.position = step, self._batch.after
        state.tokens += int(learned["tokens"])
        state.wall_s = time.monotonic() - self._began
        evaluates = bool(self._held_out) and (self._is_last or step % self._config.evaluate_every == 0)
        metrics = SftMetrics(
            step=step,
            loss=learned["loss"],
            eval_loss=mean_loss(self._learner, self._held_out) if evaluates else None,
            grad_norm=learned["grad_norm"],
            learning_rate=learned["learning_rate"],
            windows=len(batch),
            tokens=int(learned["tokens"]),
            targets=int(learned["action_tokens"]),
            epochs=self._batch.epochs,
            step_s=learned["step_s"],
        )
        self._lines.write(metrics)
        self._tell(metrics)
        if self._is_last or step % self._config.learner.checkpoint_every == 0:
            self._lines.sync()
            self._checkpoints.save(state, self._write)

    def _write(self, folder: Path) -> None:
        self._learner.save(folder / "megatron")
        self._learner.save_hf(folder / "hf")
