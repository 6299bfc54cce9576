"""What an actor is told when it starts: plain and picklable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from klong_rl.buffer.records import BufferAddress
from klong_rl.config import RunConfig


@dataclass(frozen=True)
class ActorSettings:
    """`sandboxes` builds the actor's own sandbox factory (a Hydra `_target_`), so that no actor names one."""

    config: RunConfig
    run_dir: Path  # the same on every node
    model: str  # Hugging Face folder
    buffer: BufferAddress
    sandboxes: dict[str, Any]

    def make_sandboxes(self) -> Any:
        return instantiate(self.sandboxes)
