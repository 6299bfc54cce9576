"""PaperBench in full: what the agent submits is run in a container where nothing else of it is, then judged.

    the agent's container ── submission/ ──▶ a fresh one of the task's image ── bash reproduce.sh ──▶ judged there

Source: PaperBench, arXiv 2504.01848, sections 2 and 3. Code-Dev judges what asks for code alone, and runs nothing: it
is the reward `rubric` with only_code.
"""

from __future__ import annotations

import shlex
from typing import Any

from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.rewards.rubric import rubric
from klong_rl.types import Verdict

RUN, LOG = "reproduce.sh", "reproduce.log"
ARCHIVE = ".klong-submission.tar"  # in the working directory
COPY_S = 300.0
SHOWN = 2000  # characters of what reproduce.sh printed, its end


async def paperbench(
    episode: FinishedEpisode,
    sandbox: Any,
    judge: Judge,
    *,
    reproduce_s: float = 3600.0,
    most_bytes: int = 256 << 20,
    **judging: Any,
) -> Verdict:
    """The rubric's score of the submission after its reproduce.sh ran for `reproduce_s` at most; `judging` is what
    `klong_rl.rewards.rubric.rubric` takes. A submission without reproduce.sh is judged as it is.

    Raises AgentFailure for one that is over `most_bytes` or can't be copied.
    """
    folder = str(episode.spec.task.secret.get("folder", ""))
    if not folder:
        raise TaskFailure(
            f"task {episode.spec.task.id} has no folder in its secret; tasks=papers makes tasks that have"
        )
    await sandbox.halt()
    submission = await _packed(sandbox, folder, most_bytes)
    async with judge.fresh(episode.spec.task.image) as container:
        put = await _run(container, "tar -xf -", COPY_S, stdin=submission)
        if put.exit_code != 0:
            raise AgentFailure(f"the submission can't be unpacked elsewhere: {put.output[-300:]}")
        command = f"cd {shlex.quote(folder)} && [ -f {RUN} ] && bash {RUN} > {LOG} 2>&1"
        run = await _run(container, command, reproduce_s)
        how = f"over {reproduce_s:g} s" if run.timed_out else f"exit code {run.exit_code}"
        verdict = await rubric(episode, container, judge, **judging)
    return Verdict(
        score=verdict.score,
        parts=verdict.parts | {"reproduced": float(run.exit_code == 0)},
        evidence=verdict.evidence | {"reproduce": how, "reproduce_seconds": f"{run.seconds:.1f}"},
    )


async def _packed(sandbox: Any, folder: str, most_bytes: int) -> bytes:
    result = await _run(sandbox, f"tar -cf {ARCHIVE} {shlex.quote(folder)}", COPY_S)
    if result.exit_code != 0:
        raise AgentFailure(f"the submission can't be packed: {result.output[-300:]}")
    data = await sandbox.read(ARCHIVE, limit=most_bytes + 1)
    if len(data) > most_bytes:
        raise AgentFailure(f"the submission is over {most_bytes >> 20} MiB")
    return data


async def _run(sandbox: Any, command: str, timeout_s: float, **options: Any) -> Any:
    result = await sandbox.exec(command, timeout_s=timeout_s, **options)
    if result.interrupted:
        raise InfrastructureFailure(f"the sandbox of {sandbox.episode} was lost in {command[:60]!r}")
    return result
