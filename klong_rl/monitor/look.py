"""A look at a run's buffer, and how it is shown: what waits, what is worked on, how stale, what was lost and why.

Pure: `klong_rl.status` takes the look, this draws it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from klong_rl.buffer.records import Counts, InProgress, WindowRef
from klong_rl.monitor.progress import count, duration
from klong_rl.types import ATTRIBUTED

STATES = ("queued", "running", "sealed", "judged", "dropped")
MEANING = {"sealed": "ended, not judged yet", "judged": "scored", "dropped": "ended without a score"}
MOST_REASONS = 12  # rows of a table of reasons; the rest is summed up


@dataclass(frozen=True)
class Look:
    """What the buffer of one run held at one moment. Times are Unix seconds."""

    run: str
    source: str  # where it was read, in words
    at: float
    counts: Counts
    in_progress: Sequence[InProgress]
    policy_version: int  # 0: none yet
    committed_step: int  # -1: none yet
    n_complete: int  # groups whose members are all final, not closed yet
    n_consumed: int  # groups done with, not archived yet
    ready: Sequence[WindowRef]
    leases: Mapping[int, Sequence[WindowRef]]  # by step
    memory: tuple[int, int]  # bytes used, and the limit (0: none)
    pacing: Mapping[str, float] = field(default_factory=dict)  # klong_rl.pacing's metrics; as last told, if it is down


def render(look: Look) -> RenderableType:
    """All tables, one below the other; those with nothing in them are left out."""
    parts: list[RenderableType] = [_head(look), _episodes(look), _windows(look)]
    if look.ready:
        parts.append(_staleness(look))
    if look.leases:
        parts.append(_leases(look))
    if look.counts.drops:
        parts.append(_reasons("episodes dropped", "episodes", look.counts.drops))
    if look.counts.requeues:
        parts.append(_reasons("episodes given back, to go on elsewhere", "episodes", look.counts.requeues))
    if look.counts.discarded:
        parts.append(_reasons("given up, to be sampled anew or with their episode", "tokens", look.counts.discarded))
    if look.counts.sampled:
        parts.append(
            _reasons("sampled for agents from outside, of judged episodes", "tokens", _named(look.counts.sampled))
        )
    return Group(*parts)


def memory(used: int, limit: int) -> str:
    """`12 MB of 100 MB (12%)`. MB are 10^6 bytes."""
    of = f"of {limit / 1e6:.0f} MB ({used / limit:.0%})" if limit else "(no limit)"
    return f"{used / 1e6:.0f} MB {of}"


def _head(look: Look) -> RenderableType:
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row("read from", look.source)
    facts.add_row("policy version", str(look.policy_version) if look.policy_version else "none yet")
    facts.add_row("committed step", str(look.committed_step) if look.committed_step >= 0 else "none yet")
    facts.add_row("groups", f"{look.n_complete} wait to be closed, {look.n_consumed} wait to be archived")
    if look.pacing:
        facts.add_row("pacing", _pacing(look.pacing))
    facts.add_row("memory", memory(*look.memory))
    return Panel(facts, title=Text(look.run), title_align="left", border_style="cyan", padding=(0, 1))


def _pacing(numbers: Mapping[str, float]) -> str:
    return (
        f"{numbers['pacing_episodes']:.0f} of {numbers['pacing_slots']:.0f} slots in use, "
        f"{numbers['pacing_groups_ahead']:.0f} of {numbers['pacing_groups_wanted']:.0f} groups ahead; engines: "
        f"{numbers['pacing_waiting']:.0f} requests wait, fullest KV cache {numbers['pacing_kv_use']:.0%}"
    )


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, no_wrap=len(numbers) > 1)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _episodes(look: Look) -> Table:
    ages: dict[str, list[float]] = defaultdict(list)
    for episode in look.in_progress:
        if episode.since is not None:
            ages[episode.state].append(max(0.0, look.at - episode.since))
    table = _table("episodes", "state", "episodes", "oldest", "median")
    for state in STATES:
        name = f"{state} ({MEANING[state]})" if state in MEANING else state
        known = ages[state]
        oldest, median = (duration(max(known)), duration(statistics.median(known))) if known else ("–", "–")
        table.add_row(name, str(look.counts.states.get(state, 0)), oldest, median)
    return table


def _windows(look: Look) -> Table:
    table = _table("windows", "state", "windows", "tokens")
    leased = [ref for refs in look.leases.values() for ref in refs]
    table.add_row("ready", str(len(look.ready)), _tokens(look.ready))
    table.add_row("leased", str(len(leased)), _tokens(leased))
    table.add_row("consumed", str(look.counts.windows.get("consumed", 0)), "")
    table.add_row("dropped as stale", str(look.counts.windows.get("stale", 0)), "")
    return table


def _staleness(look: Look) -> Table:
    """By the oldest token of each window: the lease counts the versions that survive, so it may count fewer."""
    by_version: dict[int, list[WindowRef]] = defaultdict(list)
    for ref in look.ready:
        by_version[ref.oldest_version].append(ref)
    table = _table("ready, by oldest policy version", "oldest version", "behind", "windows", "tokens")
    for version, refs in sorted(by_version.items()):
        table.add_row(str(version), str(look.policy_version - version), str(len(refs)), _tokens(refs))
    return table


def _leases(look: Look) -> Table:
    table = _table("leases", "step", "groups", "windows", "tokens", "oldest version", "behind")
    for step, refs in sorted(look.leases.items()):
        oldest = min(ref.oldest_version for ref in refs)
        groups = len({ref.group for ref in refs})
        behind = look.policy_version - oldest
        table.add_row(str(step), str(groups), str(len(refs)), _tokens(refs), str(oldest), str(behind))
    return table


def _reasons(title: str, unit: str, reasons: Mapping[str, int]) -> Table:
    table = _table(title, "reason", unit)
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    for reason, n in most[:MOST_REASONS]:
        table.add_row(Text(reason), str(n))
    if rest := most[MOST_REASONS:]:
        table.add_row(f"{len(rest)} other reasons", str(sum(n for _, n in rest)))
    return table


def _named(sampled: Mapping[str, int]) -> dict[str, int]:
    return {what if what == ATTRIBUTED else f"masked: {what}": n for what, n in sampled.items()}


def _tokens(refs: Sequence[WindowRef]) -> str:
    return count(sum(ref.n_tokens for ref in refs))
