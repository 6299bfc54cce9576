"""The trial of a task: submissions whose score is known, through the reward that will be trained on.

empty       a README that says nothing: must score 0, leaf by leaf
reference   the paper's own code after its reproduce.sh ran: must score high
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.grader import Grader
from klong_rl.papers.config import TrialConfig
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.stages import Spending
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.tasks.papers import SUBMISSION
from klong_rl.types import EpisodeSpec, Outcome, Task

EMPTY = {f"{SUBMISSION}/README.md": b"Nothing is here yet.\n"}
RUN, LOG = "reproduce.sh", "reproduce.log"


class Trial:
    """Runs and grades trials; sandboxes of `factory`, the verdicts of `grader`."""

    def __init__(self, factory: Any, grader: Grader, config: TrialConfig) -> None:
        self._factory, self._grader, self._config = factory, grader, config

    async def run(self, task: Task, code: Mapping[str, str], spending: Spending) -> dict[str, float | None]:
        """Scores by submission. Raises Rejected where one is not as it must be, InfrastructureFailure."""
        if self._config.require_code and not code:
            raise Rejected("trial: the paper has no code to try the rubric on, trial.require_code=true")
        empty = await self._score(task, "empty", EMPTY, "", spending)
        if empty > 0:
            raise Rejected(f"trial: a submission with nothing in it scores {empty:.3f}, and must score 0")
        if not code:
            return {"empty": empty, "reference": None}
        files = {f"{SUBMISSION}/{path}": text.encode(errors="replace") for path, text in code.items()}
        command = f"cd {shlex.quote(SUBMISSION)} && bash {RUN} > {LOG} 2>&1" if RUN in code else ""
        reference = await self._score(task, "reference", files, command, spending)
        if reference < self._config.reference_least:
            raise Rejected(
                f"trial: the paper's own code scores {reference:.3f}, trial.reference_least="
                f"{self._config.reference_least:g}"
            )
        return {"empty": empty, "reference": reference}

    async def _score(
        self, task: Task, kind: str, files: Mapping[str, bytes], command: str, spending: Spending
    ) -> float:
        spec = EpisodeSpec(
            id=f"trial/{task.id}/{kind}",
            group=f"trial/{task.id}",
            group_size=1,
            stage=0,
            purpose="eval",
            task=task,
            timeout_s=self._config.run_timeout_s,
            max_turns=1,
        )
        async with self._sandbox(spec.id, task.image, task) as sandbox:
            await sandbox.write_many({**task.files, **files})
            if command:
                result = await sandbox.exec(command, timeout_s=self._config.run_timeout_s)
                if result.interrupted:
                    raise InfrastructureFailure(f"the sandbox of {spec.id} was lost while {RUN} ran")
                if result.timed_out:
                    raise Rejected(f"trial: {RUN} takes over trial.run_timeout_s={self._config.run_timeout_s:g}")

            async def given() -> Any:
                return sandbox

            finished = FinishedEpisode(spec, Outcome(kind="submitted"))
            graded = await self._grader.grade(
                finished, 1, given, lambda image: self._sandbox(f"{spec.id}/grading", image, task)
            )
        spending.add(graded.usage)
        return graded.verdict.score

    @asynccontextmanager
    async def _sandbox(self, name: str, image: str, task: Task) -> AsyncIterator[Any]:
        sandbox = await self._factory.create(name, 1, image, task.limits)
        try:
            yield sandbox
        finally:
            await sandbox.close()
