"""What only the buffer knows of a run: what is under way, what waits, and trajectories that no file holds yet.

    up     the run's own Redis is asked, each answer at most TTL_S old, however many pages look
    down   a private server reads a copy of what the run left (klong_rl.status), once

Nothing is asked while nobody looks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from klong_rl.buffer import ServerFault, Unavailable, Unknown
from klong_rl.buffer.reader import Reader
from klong_rl.buffer.records import EpisodeView
from klong_rl.dashboard.index import ROWS
from klong_rl.dashboard.trajectory import Trained, Trajectory
from klong_rl.errors import UserError
from klong_rl.launch import run_id
from klong_rl.monitor.look import Look
from klong_rl.status import Place, find, opened, take_look
from klong_rl.types import Segment
from klong_rl.windows import window_of_each
from klong_rl.wire import WireError

TTL_S = 2.0
AWAY = (UserError, ServerFault, Unavailable)  # there is no buffer to ask, for the reason that they give


class LiveRun:
    """The buffer of one run, asked when a page asks. Belongs to one event loop; `close` it."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._place: Place | None = None
        self._opened: AsyncExitStack | None = None
        self._reader: Reader | None = None
        self._source = ""
        self._lock = asyncio.Lock()
        self._look: tuple[float, Look] | None = None
        self._rows: tuple[float, pa.Table] | None = None
        self._specs: dict[str, tuple[int, str]] = {}  # stage and task of an episode; its spec may be large
        self._segments: dict[str, tuple[int, list[Segment]]] = {}  # of the episode looked at last, with its epoch

    @property
    def up(self) -> bool:
        """Whether the run's own Redis answered last."""
        return self._place is not None and bool(self._place.url)

    async def look(self) -> Look:
        """All that klong_rl.status shows. Raises one of AWAY."""
        async with self._lock:
            if self._look is None or time.monotonic() - self._look[0] > TTL_S:
                reader = await self._ready()
                self._look = (time.monotonic(), await take_look(reader, self._run_dir, self._source))
            return self._look[1]

    async def rows(self) -> pa.Table:
        """index.ROWS of the episodes in the buffer. Raises one of AWAY."""
        async with self._lock:
            if self._rows is None or time.monotonic() - self._rows[0] > TTL_S:
                reader = await self._ready()
                self._rows = (time.monotonic(), await self._read_rows(reader))
            return self._rows[1]

    async def trajectory(self, episode: str) -> tuple[EpisodeView, Trajectory]:
        """An episode that is in the buffer. Raises one of AWAY, or Unknown."""
        async with self._lock:
            reader = await self._ready()
            view = await reader.episode(episode)
            held = await self._read_segments(reader, episode, view)
            turns = [turn for segment in held for turn in segment.turns]
            windows = window_of_each(view.spec, turns)
            advantages = await _advantages(reader, view.group, set(windows))
        verdict = None
        if view.verdict is not None:
            verdict = {"score": view.verdict.score, "parts": view.verdict.parts, "evidence": view.verdict.evidence}
        found = Trajectory(
            prefix_P=held[0].prefix_P if held else None,
            turns=turns,
            trained=Trained(windows, [advantages.get(window) for window in windows]),
            verdict=verdict,
            epoch=view.epoch,
            outcome=view.outcome.kind if view.outcome else "",
            detail=view.outcome.detail if view.outcome else "",
            dropped=view.reason,
        )
        return view, found

    async def close(self) -> None:
        """Let go of the connection, or of the private server."""
        if self._opened is not None:
            await self._opened.aclose()
        self._opened = self._reader = self._place = None

    async def _ready(self) -> Reader:
        """A reader of the buffer where it is now."""
        try:
            place = find(self._run_dir)
        except UserError:
            raise UserError("the run directory holds no Redis: shown is what its other files hold") from None
        if place != self._place or self._reader is None:
            await self.close()
            stack = AsyncExitStack()
            self._reader, self._source = await stack.enter_async_context(opened(place, run_id(self._run_dir)))
            self._opened, self._place = stack, place
        return self._reader

    async def _read_rows(self, reader: Reader) -> pa.Table:
        rows = []
        for group in await reader.groups():
            for brief in await reader.briefs(group):
                if brief.id not in self._specs:
                    try:
                        spec = (await reader.episode(brief.id)).spec
                    except Unknown:  # archived since
                        continue
                    self._specs[brief.id] = (spec.stage, spec.task.id)
                stage, task = self._specs[brief.id]
                rows.append(
                    {
                        "episode": brief.id,
                        "group": group,
                        "task": task,
                        "stage": stage,
                        "purpose": brief.purpose,
                        "state": brief.state,
                        "outcome": brief.outcome or None,
                        "dropped": brief.reason or None,
                        "score": brief.score,
                        "turns": brief.n_segments,
                    }
                )
        self._specs = {row["episode"]: self._specs[row["episode"]] for row in rows}
        return pa.Table.from_pylist(rows, ROWS)

    async def _read_segments(self, reader: Reader, episode: str, view: EpisodeView) -> list[Segment]:
        """All of them; those of the same epoch that were read before are not read again."""
        epoch, held = self._segments.get(episode, (-1, []))
        if epoch != view.epoch or len(held) > view.n_segments:
            held = []
        held = held + await reader.segments_from(episode, len(held))
        self._segments = {episode: (view.epoch, held)}
        return held


async def _advantages(reader: Reader, group: str, windows: set[str]) -> dict[str, float]:
    """Of these windows, those that a closed group has."""
    mine = [ref.id for ref in await reader.refs(group) if ref.id in windows]
    return {window.id: window.advantage for window in await reader.windows(mine)}


def look_as_json(look: Look) -> dict[str, Any]:
    """What the page shows of a look; ages in seconds."""
    ages: dict[str, list[float]] = {}
    for episode in look.in_progress:
        if episode.since is not None:
            ages.setdefault(episode.state, []).append(max(0.0, look.at - episode.since))
    leased = [ref for refs in look.leases.values() for ref in refs]
    behind: Counter[int] = Counter()
    for ref in look.ready:
        behind[look.policy_version - ref.oldest_version] += ref.n_tokens
    counts = look.counts
    return {
        "source": look.source,
        "at": look.at,
        "states": counts.states,
        "ages": {state: {"oldest": max(each), "median": sorted(each)[len(each) // 2]} for state, each in ages.items()},
        "outcomes": counts.outcomes,
        "drops": counts.drops,
        "requeues": counts.requeues,
        "discarded": counts.discarded,
        "sampled": counts.sampled,
        "appended": counts.appended,
        "windows": {"ready": len(look.ready), "leased": len(leased)}
        | {k: counts.windows.get(k, 0) for k in ("consumed", "stale")},
        "ready_tokens": sum(ref.n_tokens for ref in look.ready),
        "leased_tokens": sum(ref.n_tokens for ref in leased),
        "behind": sorted(behind.items()),
        "leases": [[step, len({ref.group for ref in refs}), len(refs)] for step, refs in sorted(look.leases.items())],
        "policy_version": look.policy_version,
        "committed_step": look.committed_step,
        "to_close": look.n_complete,
        "to_archive": look.n_consumed,
        "memory": list(look.memory),
        "pacing": dict(look.pacing),
    }


FAULTS = (*AWAY, WireError)
