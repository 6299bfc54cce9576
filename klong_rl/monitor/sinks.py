"""Where the numbers of a run go beside metrics.jsonl and TensorBoard: `monitor.sinks`, each named by import path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from klong_rl.errors import UserError
from klong_rl.monitor.metrics import StepMetrics


class Sink(Protocol):
    """A destination. What it raises ends the run: one that may fail has to say so by a warning of its own."""

    def begin(self, run_dir: Path, config: Mapping[str, Any], restored_step: int) -> None:
        """Steps follow, from `restored_step` + 1 on; again whenever the run went back. `config`: without secrets."""

    def step(self, metrics: StepMetrics) -> None:
        """A learner step ended."""

    def close(self) -> None:
        """No more steps follow, until the next `begin`."""


class WandbSink:
    """Weights & Biases. `mode` "offline" writes below RUN_DIR/wandb, for `wandb sync` later; "online" by WANDB_API_KEY.

    A run that goes back logs its steps again under the same W&B run: the curves' axis is our step, not W&B's own, and
    the later value of a step is drawn over the earlier one. Needs `pip install wandb`.
    """

    def __init__(self, project: str = "klong_rl", mode: str = "offline") -> None:
        self._project = project
        self._mode = mode
        self._run: Any = None

    def begin(self, run_dir: Path, config: Mapping[str, Any], restored_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("monitor.sinks names WandbSink, and wandb isn't installed; pip install wandb") from error

        self.close()
        self._run = wandb.init(
            project=self._project,
            mode=self._mode,
            dir=str(run_dir),
            name=run_dir.name,
            id=run_dir.name,
            resume="allow",
            config=dict(config),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def step(self, metrics: StepMetrics) -> None:
        known = {name: value for name, value in metrics.scalars().items() if value is not None}
        self._run.log({"step": metrics.step, **known})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def all_of(specs: Sequence[Mapping[str, Any]]) -> list[Sink]:
    """What `monitor.sinks` names."""
    from hydra.utils import instantiate

    return [instantiate(dict(spec)) for spec in specs]
