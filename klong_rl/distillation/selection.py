"""Which attempts become training data, and what a row of it holds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from klong_rl.distillation.journal import Journal
from klong_rl.scaffold import read_so_far, reading, reports
from klong_rl.types import EpisodeSpec


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A judged attempt, as far as choosing goes."""

    id: str
    task: str
    score: float
    turns: int


def best(candidates: Iterable[Candidate], keep: int, min_score: float) -> list[Candidate]:
    """Of each task the `keep` best that scored `min_score` or more; of two alike, the shorter. By task, best first."""
    by_task: dict[str, list[Candidate]] = {}
    for each in candidates:
        if each.score >= min_score:
            by_task.setdefault(each.task, []).append(each)
    order = {task: sorted(some, key=lambda each: (-each.score, each.turns, each.id)) for task, some in by_task.items()}
    return [each for task in sorted(order) for each in order[task][:keep]]


def row(spec: EpisodeSpec, journal: Journal, messages: Sequence[dict[str, str]], teacher: str) -> dict[str, Any]:
    """A line of trajectories.jsonl: what klong_rl.sft reads (id, score, messages), and where it comes from."""
    shown = [answer.observation for answer in journal.turned]
    progress = [
        {"turn": number, "percent": report.percent, "note": report.note}
        for number, each in enumerate(journal.intended)
        for report in reports(each.command)
    ]
    return {
        "id": spec.id,
        "score": journal.judged.score,
        "messages": list(messages),
        "task": spec.task.id,
        "teacher": teacher,
        "outcome": journal.ended.kind,
        "turns": len(journal.turned),
        "seconds": round(journal.seconds, 3),
        "parts": journal.judged.parts,
        "record": journal.judged.evidence.get("record", ""),
        "usage": msgspec.to_builtins(journal.usage),
        "thinking": [each.thinking for each in journal.intended],
        "read": {path: round(read_so_far(text, shown).share, 3) for path, text in reading(spec.task).items()},
        "progress": progress,
    }
