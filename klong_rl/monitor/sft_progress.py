"""The live display of a fine-tuning: a bar on a terminal; elsewhere one line every few steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from klong_rl.monitor.progress import count

if TYPE_CHECKING:
    from klong_rl.fine_tuning.training import SftMetrics

LINE_EVERY_S = 10.0  # where there is no terminal


def describe(metrics: SftMetrics) -> str:
    """The numbers of a step in one line."""
    loss = "diverged" if metrics.loss is None else f"{metrics.loss:.3f}"
    held_out = "" if metrics.eval_loss is None else f" | held-out loss {metrics.eval_loss:.3f}"
    speed = f"{count(metrics.tokens / max(metrics.step_s, 1e-9))} tokens/s"
    return f"step {metrics.step} | epoch {metrics.epochs:.2f} | loss {loss}{held_out} | {speed}"


class SftProgress:
    """Owns the screen while used as a context manager. The bar is the share of the epochs, or of the steps if fewer."""

    def __init__(
        self,
        title: str,
        epochs: int,
        steps: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.console = console or Console()
        self._epochs, self._steps, self._clock = epochs, steps, clock
        self._told_at = -LINE_EVERY_S
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
        self._task = self._bar.add_task(title, total=1.0, numbers="starting")

    def step(self, metrics: SftMetrics) -> None:
        done = metrics.epochs / self._epochs
        if self._steps:
            done = max(done, metrics.step / self._steps)
        self._bar.update(self._task, completed=done, numbers=describe(metrics))
        if metrics.eval_loss is not None or self._is_due():
            self._print(describe(metrics))

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)

    def _is_due(self) -> bool:
        return not self.console.is_terminal and self._clock() - self._told_at >= LINE_EVERY_S

    def _print(self, line: str) -> None:
        self._told_at = self._clock()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> SftProgress:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()
