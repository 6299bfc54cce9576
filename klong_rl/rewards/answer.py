"""Rewards that read an answer file in the container."""

from __future__ import annotations

import hashlib
from typing import Any

from klong_rl.failures import TaskFailure
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import Verdict

ANSWER_LIMIT_BYTES = 4096


async def digits_in_place(episode: FinishedEpisode, sandbox: Any) -> Verdict:
    """Share of the expected characters that stand in their place in the answer file, white space left out.

    The task's secret names the `file` and what is `expected` in it. No file is an empty answer, which scores 0.
    """
    secret = episode.spec.task.secret
    if not secret.get("expected") or not secret.get("file"):
        raise TaskFailure(f"task {episode.spec.task.id} has no file and expected answer in its secret; add both")
    await sandbox.halt()  # nothing that the agent left running has a hand in what is read
    try:
        answer = await sandbox.read(secret["file"], limit=ANSWER_LIMIT_BYTES)
    except FileNotFoundError:
        answer = b""
    score = in_place("".join(answer.decode(errors="replace").split()), secret["expected"])
    return Verdict(
        score=score,
        parts={"solved": float(score == 1.0)},
        evidence={"answer_sha256": hashlib.sha256(answer).hexdigest(), "answer": answer.decode(errors="replace")[:200]},
    )


def in_place(answer: str, expected: str) -> float:
    """Share of `expected` matched position by position; what is too long in `answer` counts against it.

    >>> in_place("714", "714"), in_place("74", "714"), in_place("7140", "714")
    (1.0, 0.3333333333333333, 0.75)
    """
    right = sum(a == b for a, b in zip(answer, expected, strict=False))
    return right / max(len(expected), len(answer))
