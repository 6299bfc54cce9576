"""What happened to every action, told by the append-only file alone.

An action enters the buffer twice: as the turn that its episode intends, before its command runs, and in the segment
that is appended after it. It leaves for a reason, or it is still there at the end:

    intended ─▶ appended ─▶ archived             its group was forgotten: a Parquet file must hold it
        │           ├─────▶ given up: REASON     by a rewind or a drop, which count it under that reason
        └───────────┴─────▶ gone                 by a transition that gave no reason: a crime
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from klong_rl.types import EpisodeSpec, Turn, Window

HELD, ARCHIVED, GIVEN_UP, GONE, STALE = "held", "archived", "given up", "gone", "stale"
OPEN, COMMITTED, ROLLED_BACK = "open", "committed", "rolled back"


@dataclass
class Action:
    """One turn as it was stored. Positions are bytes of the append-only file."""

    episode: str
    turn: Turn
    position: int
    epoch: int | None = None  # of the holder that appended it; None for an intention
    fate: str = HELD
    reason: str = ""
    left_at: int | None = None  # where it left Redis

    @property
    def n_tokens(self) -> int:
        return len(self.turn.action_A)

    def leave(self, fate: str, reason: str, position: int) -> None:
        """It is no longer in Redis."""
        self.fate, self.reason, self.left_at = fate, reason, position


@dataclass
class Episode:
    """`actions` are all that were ever appended, in that order; `live` are those that Redis held last, by segment."""

    id: str
    spec: EpisodeSpec
    position: int
    prefix_P: np.ndarray | None = None  # int32, of the newest segment 0
    actions: list[Action] = field(default_factory=list)
    live: list[list[Action]] = field(default_factory=list)
    intended: Action | None = None
    unfinished: list[Action] = field(default_factory=list)  # intended and never appended
    dropped: str = ""


@dataclass
class WindowStory:
    """A window that a closed group made. `fate`: held, archived, stale or gone."""

    window: Window
    position: int
    fate: str = HELD


@dataclass
class Lease:
    """One group leased to one step. `end`: open, committed or rolled back."""

    step: int
    group: str
    position: int
    end: str = OPEN
    ended_at: int | None = None


@dataclass
class History:
    """All that one run's buffer went through."""

    episodes: dict[str, Episode] = field(default_factory=dict)
    windows: dict[str, WindowStory] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)  # groups that were archived
    versions: list[int] = field(default_factory=list)  # policy versions, as published

    def went_on(self) -> list[str]:
        """Episodes that came to their end with turns of more than one holder: they went on in the middle."""
        kept = {
            name: {action.epoch for action in episode.actions if action.fate != GIVEN_UP}
            for name, episode in self.episodes.items()
        }
        return [name for name, epochs in kept.items() if len(epochs) > 1]

    def interrupted(self) -> int:
        """Commands whose holder died, so that the agent was told that they were interrupted."""
        return sum(action.turn.interrupted for episode in self.episodes.values() for action in episode.actions)
