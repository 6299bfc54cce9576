"""Hidden tests, run in a fresh container of what the episode left."""

from __future__ import annotations

import shlex
from typing import Any

from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.types import Verdict

CLEARED_S = 30.0
SHOWN = 200  # characters of a failed test's output, its end


async def hidden_tests(episode: FinishedEpisode, sandbox: Any, judge: Judge, *, timeout_s: float = 60.0) -> Verdict:
    """Share of the hidden tests that pass.

    The task's secret holds `tests`, a command by name (it passes with exit code 0 within `timeout_s`), and `files`,
    text by path, which are put in place first, over whatever the agent has there. The agent never saw either.
    """
    secret = episode.spec.task.secret
    tests, files = secret.get("tests"), secret.get("files", {})
    if not tests:
        raise TaskFailure(f"task {episode.spec.task.id} has no tests in its secret: add a command by name")
    await sandbox.halt()  # the snapshot is of files that nobody changes any more
    parts, evidence = {}, {}
    async with judge.fresh() as fresh:
        if files:
            await fresh.exec(f"rm -rf -- {shlex.join(files)}", timeout_s=CLEARED_S)  # else a folder could stand there
            await fresh.write_many({path: text.encode() for path, text in files.items()})
        for name, command in tests.items():
            result = await fresh.exec(command, timeout_s=timeout_s)
            if result.interrupted:
                raise InfrastructureFailure(f"the sandbox of {episode.spec.id} was lost during hidden test {name}")
            parts[name] = float(result.exit_code == 0 and not result.timed_out)
            if not parts[name]:
                why = f"over {timeout_s:g} s" if result.timed_out else f"exit code {result.exit_code}"
                evidence[name] = f"{why}: {result.output[-SHOWN:]}"
    score = sum(parts.values()) / len(parts)
    return Verdict(score=score, parts=parts | {"solved": float(score == 1.0)}, evidence=evidence)
