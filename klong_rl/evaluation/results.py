"""What became of each episode, and what it amounts to: a line for each part of the suite and one for all. Pure.

An episode that failed for reasons of ours or of its task has no score: it counts nowhere, and is listed. A model that
would not act scores 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from klong_rl.distillation.attempt import REFUSED
from klong_rl.distillation.journal import Journal
from klong_rl.evaluation.bootstrap import Interval, interval
from klong_rl.failures import EpisodeFailure, TaskFailure
from klong_rl.judging.protocols import Usage
from klong_rl.types import EpisodeSpec

ALL = "all"
OURS, OF_TASK = "infrastructure", "task"  # who is to blame where there is no score


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """`score` and `solved` are None where there is no verdict; `blame` and `detail` say why then."""

    id: str
    task: str
    part: str
    sample: int
    score: float | None = None
    solved: float | None = None
    parts: dict[str, float] = {}
    evidence: dict[str, str] = {}
    outcome: str = ""
    detail: str = ""
    blame: str = ""
    turns: int = 0
    seconds: float = 0.0  # active
    usage: Usage = Usage()  # the policy's and the judge's


def ended(spec: EpisodeSpec, part: str, sample: int, journal: Journal) -> Episode:
    """An episode that has ended."""
    judged = journal.judged
    if judged is None and journal.ended.kind == REFUSED:
        score, parts, evidence = 0.0, {}, {}
    else:
        score, parts, evidence = judged.score, judged.parts, judged.evidence
    return Episode(
        id=spec.id,
        task=spec.task.id,
        part=part,
        sample=sample,
        score=score,
        solved=parts.get("solved", float(score == 1.0)),
        parts=parts,
        evidence=evidence,
        outcome=journal.ended.kind,
        detail=journal.ended.detail,
        turns=len(journal.turned),
        seconds=round(journal.seconds, 3),
        usage=journal.usage,
    )


def unscored(spec: EpisodeSpec, part: str, sample: int, failure: EpisodeFailure, usage: Usage) -> Episode:
    """An episode that failed; `usage` is what was spent on it."""
    blame = OF_TASK if isinstance(failure, TaskFailure) else OURS
    name, task = spec.id, spec.task.id
    return Episode(id=name, task=task, part=part, sample=sample, blame=blame, detail=str(failure), usage=usage)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """`score`, `solved` and `best` are over tasks, each with the mean (the maximum, for `best`) of its episodes.

    `turns`, `seconds` and `tokens` are means over the episodes that have a score; `usage` is the sum.
    """

    part: str
    tasks: int  # that have a score
    episodes: int
    unscored: int
    score: Interval | None
    solved: Interval | None
    best: Interval | None
    turns: float
    seconds: float
    tokens: float
    usage: Usage


def lines(episodes: Sequence[Episode], confidence: float) -> list[Line]:
    """One for each part, in the order they come in, and the last for all; a single part needs no second line."""
    parts = list(dict.fromkeys(each.part for each in episodes))
    found = [line(part, [each for each in episodes if each.part == part], confidence) for part in parts]
    return found if len(found) == 1 else [*found, line(ALL, episodes, confidence)]


def line(part: str, episodes: Sequence[Episode], confidence: float) -> Line:
    scored = [each for each in episodes if each.score is not None]
    by_task: dict[str, list[Episode]] = defaultdict(list)
    for each in scored:
        by_task[each.task].append(each)
    groups, n = list(by_task.values()), max(1, len(scored))

    def over_tasks(value: Any, of: Any) -> Interval | None:
        return interval([of([value(each) for each in group]) for group in groups], confidence)

    return Line(
        part=part,
        tasks=len(groups),
        episodes=len(scored),
        unscored=len(episodes) - len(scored),
        score=over_tasks(lambda each: each.score, _mean),
        solved=over_tasks(lambda each: each.solved, _mean),
        best=over_tasks(lambda each: each.solved, max),
        turns=sum(each.turns for each in scored) / n,
        seconds=sum(each.seconds for each in scored) / n,
        tokens=sum(each.usage.prompt_tokens + each.usage.completion_tokens for each in scored) / n,
        usage=sum((each.usage for each in episodes), Usage()),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
