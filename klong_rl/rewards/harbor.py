"""Harbor's verdict: the task's own tests/test.sh at /tests, and the reward that it writes below /logs/verifier.

As Harbor does, the tests run in the container that the agent left, services that it started and all. So what the agent
left running could meddle with them: with `fresh` they run in a new container of its files instead, where nothing runs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from klong_rl.blocking import in_thread
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.tasks.harbor import packed
from klong_rl.types import Verdict

LOGS, TESTS = "/logs/verifier", "/tests"
OUTPUT = f"{LOGS}/test-stdout.txt"
PUT_S = 60.0
SHOWN = 2000  # characters of the tests' output, its end
REWARD_BYTES = 1 << 16
# Rewards that the agent left would be taken for the verifier's.
PUT = (
    f"rm -rf {TESTS} {LOGS} && mkdir -p {TESTS} {LOGS} /logs/agent /logs/artifacts && tar -xf - -C {TESTS} && "
    f"chmod +x {TESTS}/test.sh"
)


async def harbor(episode: FinishedEpisode, sandbox: Any, judge: Judge, *, fresh: bool = False) -> Verdict:
    """The reward that the tests wrote: `reward.json` or `reward.txt`. Over their time they have failed.

    The task's secret holds the folder `tests`, `verifier_s` and `verifier_env` (klong_rl.tasks.harbor). Raises
    TaskFailure where they leave no reward.
    """
    if "tests" not in episode.spec.task.secret:
        raise TaskFailure(f"task {episode.spec.task.id} has no tests in its secret; tasks=harbor makes tasks that have")
    if not fresh:
        await sandbox.forget()
        return await _verdict(episode, sandbox)
    await sandbox.halt()
    async with judge.fresh() as container:
        return await _verdict(episode, container)


async def _verdict(episode: FinishedEpisode, sandbox: Any) -> Verdict:
    task = episode.spec.task
    tests = await in_thread(packed, Path(task.secret["tests"]))
    put = await sandbox.exec(PUT, stdin=tests, timeout_s=PUT_S)
    _check(put, episode)
    if put.exit_code != 0:
        raise TaskFailure(f"the tests of {task.id} can't be put at {TESTS}: {put.output[-SHOWN:]}")
    limit_s = task.secret["verifier_s"]
    env = {"TEST_DIR": TESTS} | task.secret["verifier_env"]
    run = await sandbox.exec(f"{TESTS}/test.sh > {OUTPUT} 2>&1", timeout_s=limit_s, env=env)
    _check(run, episode)
    output = await _read(sandbox, OUTPUT, 1 << 20)
    shown = output.decode(errors="replace")[-SHOWN:]
    if run.timed_out:
        why = f"the tests took over {limit_s:g} s"
        return Verdict(score=0.0, parts={"solved": 0.0}, evidence={"verifier": why, "tests": shown})
    rewards = await _rewards(sandbox, task.id, f"exit code {run.exit_code}: {shown}")
    score = rewards["reward"]
    return Verdict(score=score, parts=rewards | {"solved": float(score >= 1.0)}, evidence={"tests": shown})


async def _rewards(sandbox: Any, task: str, how: str) -> dict[str, float]:
    """By name, `reward` among them. Raises TaskFailure."""
    for name in ("reward.json", "reward.txt"):
        text = await _read(sandbox, f"{LOGS}/{name}", REWARD_BYTES)
        if text.strip():
            try:
                return parse_rewards(name, text.decode(errors="replace"))
            except ValueError as error:
                raise TaskFailure(f"the tests of {task} left a {name} that can't be used: {error}") from error
    raise TaskFailure(f"the tests of {task} left no reward in {LOGS}; {how}")


def parse_rewards(name: str, text: str) -> dict[str, float]:
    """Of reward.json (a number, or numbers by name) or reward.txt (a number); `reward` is the one that counts.

    Raises ValueError for what is no finite number, and for several of which none is called `reward`.

    >>> parse_rewards("reward.txt", "1\\n"), parse_rewards("reward.json", '{"accuracy": 0.5}')
    ({'reward': 1.0}, {'reward': 0.5, 'accuracy': 0.5})
    """
    found = json.loads(text) if name.endswith(".json") else float(text)
    rewards = dict(found) if isinstance(found, dict) else {"reward": found}
    for key, value in rewards.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{key}={value!r} is no finite number")
    if "reward" not in rewards and len(rewards) != 1:
        raise ValueError(f"none of {', '.join(rewards) or 'no values'} is called reward")
    first = next(iter(rewards.values()))
    return {key: float(value) for key, value in ({"reward": first} | rewards).items()}


async def _read(sandbox: Any, path: str, limit: int) -> bytes:
    try:
        return await sandbox.read(path, limit=limit)
    except FileNotFoundError:
        return b""


def _check(result: Any, episode: FinishedEpisode) -> None:
    if result.interrupted:
        raise InfrastructureFailure(f"the sandbox of {episode.spec.id} was lost while it was verified")
