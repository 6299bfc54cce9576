"""The ledger of what was trained: `RUN_DIR/trained.jsonl`, one line a learner step of the weights that survive.

Written once the step is learned, durable before the checkpoint that holds the step is begun, cut back with it when the
run goes back. So an auditor can hold the archive against it: each action token sampled was trained once, or has a
reason why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from klong_rl.buffer import WindowRef
from klong_rl.step_lines import StepLines, read_lines

LEDGER_FILE = "trained.jsonl"


class TrainedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One learner step. `version` is that of the weights before it; staleness is in learner updates."""

    step: int
    version: int
    action_tokens: int
    staleness_max: int
    groups: dict[str, list[str]]  # group: ids of its windows

    @classmethod
    def of(cls, step: int, version: int, staleness_max: int, refs: Sequence[WindowRef]) -> TrainedStep:
        groups: dict[str, list[str]] = {}
        for ref in refs:
            groups.setdefault(ref.group, []).append(ref.id)
        action_tokens = sum(ref.n_targets for ref in refs)
        return cls(step=step, version=version, action_tokens=action_tokens, staleness_max=staleness_max, groups=groups)


class Ledger:
    """Writes one life's steps, from `restored_step` on."""

    def __init__(self, run_dir: Path, restored_step: int = 0) -> None:
        self._lines = StepLines(run_dir / LEDGER_FILE, TrainedStep, restored_step)
        self._steps: dict[str, int] = {}  # group -> step

    def trained(self, groups: Sequence[str]) -> dict[str, int]:
        """Those of `groups` that were trained in this life and not forgotten since, with their step."""
        return {group: self._steps[group] for group in groups if group in self._steps}

    def write(self, entry: TrainedStep) -> None:
        self._lines.write(entry)
        self._steps |= dict.fromkeys(entry.groups, entry.step)

    def sync(self) -> None:
        """All steps written are durable when this returns."""
        self._lines.sync()

    def forget(self, step: int) -> None:
        """The groups of steps up to `step`: a durable checkpoint holds them."""
        self._steps = {group: trained for group, trained in self._steps.items() if trained > step}

    def close(self) -> None:
        self._lines.close()


def read_ledger(run_dir: Path) -> list[TrainedStep]:
    """All steps so far, oldest first; none if there is no ledger."""
    return read_lines(run_dir / LEDGER_FILE, TrainedStep)
