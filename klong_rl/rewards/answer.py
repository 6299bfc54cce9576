"""Rewards that read an answer file in the container. The secret names the `file` and what is `expected` in it."""

from __future__ import annotations

import hashlib
from typing import Any

from klong_rl.failures import TaskFailure
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.types import Verdict

ANSWER_LIMIT_BYTES = 4096


async def digits_in_place(episode: FinishedEpisode, sandbox: Any, judge: Judge) -> Verdict:
    """Share of the expected characters that stand in their place, white space left out. No file scores 0."""
    answer, expected = await _answer(episode, sandbox)
    return _verdict(answer, in_place("".join(answer.decode(errors="replace").split()), expected))


async def exact(episode: FinishedEpisode, sandbox: Any, judge: Judge) -> Verdict:
    """1 if the answer is what is expected, white space around it and line endings left aside; else 0."""
    answer, expected = await _answer(episode, sandbox)
    lines = answer.decode(errors="replace").strip().splitlines()
    return _verdict(answer, float(lines == expected.strip().splitlines()))


async def _answer(episode: FinishedEpisode, sandbox: Any) -> tuple[bytes, str]:
    """What was left in the answer file, b"" if there is none, and what is expected there. Raises TaskFailure."""
    secret = episode.spec.task.secret
    if not secret.get("expected") or not secret.get("file"):
        raise TaskFailure(f"task {episode.spec.task.id} has no file and expected answer in its secret; add both")
    limit = max(ANSWER_LIMIT_BYTES, 2 * len(secret["expected"].encode()))
    await sandbox.halt()  # nothing that the agent left running has a hand in what is read
    try:
        return await sandbox.read(secret["file"], limit=limit), secret["expected"]
    except FileNotFoundError:
        return b"", secret["expected"]


def _verdict(answer: bytes, score: float) -> Verdict:
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
