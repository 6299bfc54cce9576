"""One episode as the page shows it: a line for each turn at once, the turns themselves a page at a time. Pure.

The summary is small (some 100 bytes a turn), so a time line of thousands of turns is sent whole; tokens and texts, of
which an episode may have millions, are sent for the turns that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klong_rl.types import Turn

COMMAND_CHARS = 160  # of a command on the time line
PAGE_TURNS = 50  # at most
PAGE_TOKENS = 3000  # of one action, and
PAGE_CHARS = 20_000  # of one text, until more is asked for

Pieces = Callable[[Sequence[int]], list[str]]


@dataclass
class Trained:
    """What training made of the turns of an episode: by turn, "" and None where it was not trained."""

    windows: list[str] = field(default_factory=list)
    advantages: list[float | None] = field(default_factory=list)
    step: int | None = None
    learned: dict[int, np.ndarray] = field(default_factory=dict)  # by place of a turn: the learner's log-probs, float32


@dataclass
class Trajectory:
    """`prefix_P`: task and tools, int32; None for an episode without turns."""

    prefix_P: np.ndarray | None
    turns: list[Turn]
    trained: Trained
    verdict: dict[str, Any] | None = None  # score, parts, evidence
    epoch: int = 0
    outcome: str = ""
    detail: str = ""
    dropped: str = ""


def read_archived(path: Path, episode: str) -> Trajectory:
    """An episode that a file of the archive holds."""
    rows = pq.read_table(path, filters=[("episode", "==", episode)])
    head = {name: rows[name][0].as_py() for name in ("epoch", "outcome", "outcome_detail", "dropped", "score", "step")}
    score = head["score"]
    verdict = None
    if score is not None:
        parts, evidence = dict(rows["score_parts"][0].as_py() or []), dict(rows["evidence"][0].as_py() or [])
        verdict = {"score": score, "parts": parts, "evidence": evidence}
    has_turns = rows["turn"][0].as_py() is not None
    trained = Trained(rows["window"].to_pylist(), rows["advantage"].to_pylist(), head["step"])
    return Trajectory(
        prefix_P=_lists(rows, "prefix")[0],
        turns=_turns(rows) if has_turns else [],
        trained=trained if has_turns else Trained(step=head["step"]),
        verdict=verdict,
        epoch=head["epoch"],
        outcome=head["outcome"] or "",
        detail=head["outcome_detail"] or "",
        dropped=head["dropped"] or "",
    )


def learned_of(trajectory: Trajectory, kept: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    """The learner's log-probs of each turn's action, from those of the targets of whole windows (klong_rl.learned).

    A window whose targets are not the actions of its turns, one after the other, is left out.
    """
    found: dict[int, np.ndarray] = {}
    trained = trajectory.trained
    for window, logprobs in kept.items():
        places = [i for i, name in enumerate(trained.windows) if name == window and not trajectory.turns[i].masked]
        ends = np.cumsum([len(trajectory.turns[i].action_A) for i in places]).tolist()
        if ends and ends[-1] == len(logprobs):
            found |= {i: logprobs[a:b] for i, a, b in zip(places, [0, *ends], ends, strict=False)}
    return found


def _lists(rows: pa.Table, name: str) -> list[np.ndarray | None]:
    """A column of lists as arrays that share one memory: of millions of tokens none becomes a Python number."""
    if name not in rows.column_names:
        return [None] * rows.num_rows
    column = rows[name].combine_chunks()
    flat, bounds, valid = column.values.to_numpy(), column.offsets.to_numpy(), column.is_valid().to_pylist()
    return [flat[a:b] if ok else None for a, b, ok in zip(bounds, bounds[1:], valid, strict=False)]


def _turns(rows: pa.Table) -> list[Turn]:
    names = ("turn", "context_start", "command", "exit_code", "seconds", "interrupted", "follows", "masked")
    plain = {n: rows[n].to_pylist() if n in rows.column_names else [None] * rows.num_rows for n in names}
    lists = {n: _lists(rows, n) for n in ("action", "logprobs", "versions", "observation", "prompt")}
    return [
        Turn(
            index=plain["turn"][i],
            context_start=plain["context_start"][i],
            action_A=lists["action"][i],
            logprobs_A=lists["logprobs"][i],
            versions=run_lengths(lists["versions"][i]),
            observation_O=lists["observation"][i],
            command=plain["command"][i] or "",
            exit_code=plain["exit_code"][i],
            seconds=plain["seconds"][i],
            interrupted=plain["interrupted"][i],
            follows=-1 if plain["follows"][i] is None else plain["follows"][i],
            prompt_T=lists["prompt"][i],
            masked=plain["masked"][i] or "",
        )
        for i in range(rows.num_rows)
    ]


def run_lengths(versions_A: np.ndarray) -> tuple[tuple[int, int], ...]:
    """((version, count), ...) of a version for each token.

    >>> run_lengths(np.array([3, 3, 4]))
    ((3, 2), (4, 1))
    """
    if not len(versions_A):
        return ()
    starts = np.flatnonzero(np.diff(versions_A, prepend=versions_A[0] - 1))
    counts = np.diff(starts, append=len(versions_A))
    return tuple(zip(versions_A[starts].tolist(), counts.tolist(), strict=True))


def left_at(turns: Sequence[Turn]) -> list[int | None]:
    """For each turn, the first later turn that was sampled without it in its context; None if none was."""
    left: list[int | None] = [None] * len(turns)
    gone = 0
    for position, turn in enumerate(turns):
        while turn.prompt_T is None and gone < min(turn.context_start, position):
            left[gone] = position
            gone += 1
    return left


def context_tokens(trajectory: Trajectory) -> list[int]:
    """How many tokens the model saw when it sampled each action."""
    turns = trajectory.turns
    before = np.concatenate([[0], np.cumsum([turn.n_tokens() for turn in turns])]).tolist()
    prefix = 0 if trajectory.prefix_P is None else len(trajectory.prefix_P)
    seen: list[int] = []
    for position, turn in enumerate(turns):
        if turn.prompt_T is None:
            seen.append(prefix + before[position] - before[min(turn.context_start, position)])
        else:
            earlier = seen[turn.follows] + len(turns[turn.follows].action_A) if turn.follows >= 0 else 0
            seen.append(earlier + len(turn.prompt_T))
    return seen


def summary(trajectory: Trajectory) -> dict[str, list]:
    """The time line: a column a fact, an entry a turn."""
    turns, trained = trajectory.turns, trajectory.trained
    n = len(turns)
    logprobs = [turn.logprobs_A for turn in turns]
    return {
        "action": [len(turn.action_A) for turn in turns],
        "observation": [len(turn.observation_O) for turn in turns],
        "seconds": [turn.seconds for turn in turns],
        "context": context_tokens(trajectory),
        "context_start": [turn.context_start if turn.prompt_T is None else None for turn in turns],
        "follows": [None if turn.prompt_T is None else turn.follows for turn in turns],
        "left_at": left_at(turns),
        "oldest": [min((v for v, _ in turn.versions), default=None) for turn in turns],
        "newest": [max((v for v, _ in turn.versions), default=None) for turn in turns],
        "logprob_mean": [float(each.mean()) if len(each) else None for each in logprobs],
        "logprob_min": [float(each.min()) if len(each) else None for each in logprobs],
        "exit_code": [turn.exit_code for turn in turns],
        "interrupted": [turn.interrupted for turn in turns],
        "masked": [turn.masked for turn in turns],
        "command": [turn.command[:COMMAND_CHARS] for turn in turns],
        "window": [each or "" for each in (trained.windows or [""] * n)],
        "advantage": list(trained.advantages) or [None] * n,
    }


def turn_page(
    found: Trajectory, first: int, last: int, pieces: Pieces, tokens: int = PAGE_TOKENS, chars: int = PAGE_CHARS
) -> list[dict]:
    """Turns `first` to `last` with their texts: of an action its first `tokens`, of a text its first `chars`."""
    learned = found.trained.learned
    places = range(first, min(last, len(found.turns)))
    return [_turn(found.turns[i], learned.get(i), pieces, tokens, chars) for i in places]


def _turn(turn: Turn, learned_A: np.ndarray | None, pieces: Pieces, tokens: int, chars: int) -> dict[str, Any]:
    gaps = None if learned_A is None else learned_A.astype(np.float64) - turn.logprobs_A
    return {
        "gaps": None if gaps is None else [float(f"{gap:.3g}") for gap in gaps[:tokens]],
        "index": turn.index,
        "pieces": pieces(turn.action_A[:tokens].tolist()),
        "logprobs": np.round(turn.logprobs_A[:tokens].astype(np.float64), 4).tolist(),
        "versions": [list(run) for run in turn.versions],
        "action_tokens": len(turn.action_A),
        "command": cut(turn.command, chars),
        "observation": cut("".join(pieces(turn.observation_O[: 4 * chars].tolist())), chars),
        "observation_whole": len(turn.observation_O) <= 4 * chars,
        "prompt": None if turn.prompt_T is None else cut("".join(pieces(turn.prompt_T[: 4 * chars].tolist())), chars),
    }


def cut(text: str, chars: int) -> dict[str, Any]:
    """A text, at most its first `chars`, and how long it is."""
    return {"text": text[:chars], "chars": len(text)}
