"""The stages of one paper as files that one can open, each found again by the hash of what it depends on.

    OUT/papers/NAME/convert.json    {"key": hash, "outcome": "ok", "value": ..., "usage": ..., "seconds": ...}

`ok` and `rejected` hold as long as the key does, and cost nothing again. `failed` is ours (an endpoint that doesn't
answer): written for people, and tried again by the next run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.protocols import Usage
from klong_rl.judging.store import canonical, digest, write_whole
from klong_rl.papers.rejected import Rejected

OK, REJECTED, FAILED = "ok", "rejected", "failed"


class Stage(msgspec.Struct, kw_only=True):
    """`value` is plain JSON; `usage` is what the stage's model requests took, in whichever run made it."""

    key: str
    outcome: str
    value: Any = None
    reason: str = ""
    usage: Usage = Usage()
    seconds: float = 0.0


class Spending:
    """What one stage spends, added up while it works."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, usage: Usage) -> None:
        self.usage += usage


class Sheet:
    """One paper's stages, in `folder`. `tell(stage name)` is called when one begins to work, `spend(usage)` at its
    end."""

    def __init__(self, folder: Path, tell: Callable[[str], None], spend: Callable[[Usage], None]) -> None:
        self.folder = folder
        self._tell, self._spend = tell, spend

    def all(self) -> list[Stage]:
        """Every stage that was left here, by name."""
        found = (self.read(path.stem) for path in sorted(self.folder.glob("*.json")))
        return [stage for stage in found if stage is not None]

    def read(self, name: str) -> Stage | None:
        """The stage as it was left; None where it never was, or can't be read."""
        try:
            return msgspec.json.decode((self.folder / f"{name}.json").read_bytes(), type=Stage)
        except (FileNotFoundError, msgspec.DecodeError):  # other files are no stages
            return None

    async def stage(self, name: str, depends_on: Any, make: Callable[[Spending], Awaitable[Any]]) -> Any:
        """The value of a stage: as it was made of the same `depends_on` (plain JSON), or as `make` makes it now.

        Raises Rejected, kept too, and InfrastructureFailure.
        """
        key = digest(canonical([name, depends_on]))
        known = self.read(name)
        if known is not None and known.key == key and known.outcome != FAILED:
            if known.outcome == REJECTED:
                raise Rejected(known.reason)
            return known.value
        self._tell(name)
        spending, began = Spending(), time.monotonic()

        def end(outcome: str, value: Any = None, reason: str = "") -> None:
            took = time.monotonic() - began
            made = Stage(
                key=key, outcome=outcome, value=value, reason=reason, usage=spending.usage, seconds=round(took, 3)
            )
            text = json.dumps(msgspec.to_builtins(made), indent=1, ensure_ascii=False, default=str)
            write_whole(self.folder / f"{name}.json", f"{text}\n".encode(errors="replace"))
            self._spend(spending.usage)

        try:
            value = await make(spending)
        except Rejected as rejected:
            end(REJECTED, reason=str(rejected))
            raise
        except InfrastructureFailure as failure:
            end(FAILED, reason=str(failure))
            raise
        end(OK, value)
        return value
