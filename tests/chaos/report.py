"""What a campaign of kills came to: each fault's times, and what it cost, told by where it fell in the history."""

from __future__ import annotations

import bisect
import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.audit import LOST, TWICE, Audit, Crime
from tests.chaos.history import GIVEN_UP, ROLLED_BACK, STALE, History


@dataclass
class Fired:
    """One kill that fired. `position` is where the append-only file ended then."""

    kind: str
    run: str
    victim: str
    position: int
    recovered_s: float
    redone: int = 0  # action tokens: given up and sampled again, or trained again
    lost: int = 0
    twice: int = 0


@dataclass
class Campaign:
    """All runs so far."""

    fired: list[Fired] = field(default_factory=list)
    not_fired: list[str] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    crimes: list[Crime] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    oldest: int = 0  # the largest distance, in updates, of a token that was trained
    went_on: int = 0  # episodes that came to their end with turns of more than one holder
    interrupted: int = 0  # commands that their agents were told were interrupted

    def add(self, kills: list[Fired], history: History, found: Audit) -> None:
        """Lay what one run cost at the feet of its kills: each at that of the last one before it."""
        kills = sorted(kills, key=lambda kill: kill.position)
        blame = _Blame(kills)
        for position, tokens in redone(history):
            if (kill := blame.of(position)) is not None:
                kill.redone += tokens
        for crime in found.crimes:
            if (kill := blame.of(crime.position)) is not None:
                kill.lost += crime.tokens if crime.kind == LOST else 0
                kill.twice += crime.tokens if crime.kind == TWICE else 0
        self.fired += kills
        self.tokens += found.tokens
        self.crimes += found.crimes
        self.checked += found.checked
        self.oldest = max(self.oldest, found.oldest)
        self.went_on += len(history.went_on())
        self.interrupted += history.interrupted()

    def is_clean(self, wanted: int) -> bool:
        return not self.crimes and not self.failures and len(self.fired) >= wanted


class _Blame:
    def __init__(self, kills: list[Fired]) -> None:
        self._kills = kills

    def of(self, position: int | None) -> Fired | None:
        """The last kill before a position; the first where no place or no earlier kill is known."""
        if not self._kills:
            return None
        index = bisect.bisect_right([kill.position for kill in self._kills], position or 0) - 1
        return self._kills[max(0, index)]


def redone(history: History) -> list[tuple[int, int]]:
    """(position, action tokens) of what was given up with an episode's turns, or leased and rolled back."""
    found = [
        (action.left_at, action.n_tokens)
        for episode in history.episodes.values()
        for action in (*episode.actions, *episode.unfinished)
        if action.fate == GIVEN_UP
    ]
    targets: Counter[str] = Counter()
    for story in history.windows.values():
        targets[story.window.group] += story.window.n_targets() if story.fate != STALE else 0
    found += [(lease.ended_at, targets[lease.group]) for lease in history.leases if lease.end == ROLLED_BACK]
    return found


def table(campaign: Campaign, kinds: list[str]) -> Table:
    """One row a fault, and all together."""
    made = Table(title="kills, and what they cost")
    for heading in ("fault", "times", "recovered in s (median, max)", "tokens redone", "lost", "trained twice"):
        made.add_column(heading, justify="left" if heading == "fault" else "right")
    for kind in (*kinds, "all"):
        fired = [kill for kill in campaign.fired if kind in (kill.kind, "all")]
        times = [kill.recovered_s for kill in fired]
        took = f"{statistics.median(times):.1f}, {max(times):.1f}" if times else "-"
        sums = [str(sum(getattr(kill, name) for kill in fired)) for name in ("redone", "lost", "twice")]
        made.add_row(kind, str(len(fired)), took, *sums, end_section=kind == kinds[-1])
    return made


def show(campaign: Campaign, kinds: list[str], console: Console) -> None:
    """The table, the account of tokens, and everything that doesn't fit."""
    console.print(table(campaign, kinds))
    console.print("action tokens by what became of them: " + ", ".join(f"{n} {x}" for x, n in campaign.tokens.items()))
    console.print(
        f"checked: {', '.join(f'{n} {what}' for what, n in campaign.checked.items())}; no token that was trained is "
        f"older than {campaign.oldest} updates"
    )
    console.print(
        f"{campaign.went_on} episodes went on in the middle under another holder; {campaign.interrupted} commands were "
        "reported to their agents as interrupted"
    )
    for text in campaign.not_fired:
        console.print(f"did not fire, not counted: {text}", markup=False)
    for crime in campaign.crimes:
        console.print(f"CRIME {crime.kind}: {crime.what} ({crime.tokens} tokens)", markup=False)
    for text in campaign.failures:
        console.print(f"FAILURE {text}", markup=False)


def write_json(campaign: Campaign, seed: int, path: Path) -> None:
    """Everything, for a machine."""
    whole = {
        "seed": seed,
        "fired": [asdict(kill) for kill in campaign.fired],
        "not_fired": campaign.not_fired,
        "tokens": dict(campaign.tokens),
        "checked": dict(campaign.checked),
        "oldest": campaign.oldest,
        "went_on": campaign.went_on,
        "interrupted": campaign.interrupted,
        "crimes": [crime._asdict() for crime in campaign.crimes],
        "failures": campaign.failures,
    }
    path.write_text(json.dumps(whole, indent=2) + "\n")
