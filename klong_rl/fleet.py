"""The actors of a run as the driver sees them: started, watched, given new weights, stopped. Ray does the rest.

An actor's `run()` ends only when it is stopped, so one that ends earlier is a failure, and `check` raises it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from klong_rl.config import RunConfig

START_DEADLINE_S = 600.0  # an engine compiles and loads within it
PUBLISH_DEADLINE_S = 180.0
STATUS_DEADLINE_S = 30.0
SCORE_DEADLINE_S = 600.0  # behind whatever the engine is busy with
STOP_DEADLINE_S = 90.0


class ActorFailure(Exception):
    """An actor ended, or didn't answer in time. Says which, and what was asked of it."""


class Fleet:
    """`rollout_class` and `judge_class` are plain classes (actors.rollout, actors.judge), handed in by the launcher."""

    def __init__(self, config: RunConfig, settings: Any, rollout_class: type, judge_class: type) -> None:
        import ray

        self._ray = ray
        engine, judge = config.actors, config.judge
        self._rollouts = {
            f"rollout-{i}": ray.remote(rollout_class)
            .options(num_cpus=engine.num_cpus, num_gpus=engine.num_gpus)
            .remote(settings, f"rollout-{i}", i)
            for i in range(engine.count)
        }
        self._judges = {
            f"judge-{i}": ray.remote(judge_class).options(num_cpus=judge.num_cpus).remote(settings, f"judge-{i}")
            for i in range(judge.count)
        }
        self._runs: dict[Any, str] = {}

    async def start(self, version: int) -> None:
        """Bring all up, the engines with policy `version`, and set them to work."""
        starts = {name: actor.start.remote(version) for name, actor in self._rollouts.items()}
        starts |= {name: actor.start.remote() for name, actor in self._judges.items()}
        await self._all("start", starts, START_DEADLINE_S)
        self._runs = {actor.run.remote(): name for name, actor in (self._rollouts | self._judges).items()}

    def check(self) -> None:
        """Raise ActorFailure if an actor has ended."""
        ended, _ = self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        for run in ended:
            try:
                self._ray.get(run)
            except self._ray.exceptions.RayError as error:
                raise ActorFailure(f"{self._runs[run]} failed: {error}") from error
            raise ActorFailure(f"{self._runs[run]} ended by itself")

    async def publish(self, path: str, version: int) -> float:
        """Give every engine the weights at `path`; the longest any engine was paused, in seconds."""
        calls = {name: actor.publish.remote(path, version) for name, actor in self._rollouts.items()}
        return max(await self._all(f"publish version {version}", calls, PUBLISH_DEADLINE_S))

    async def logprobs(self, tokens_T: Any) -> list[Any]:
        """Every engine's log-prob of each token but the first, float32 [T-1]."""
        calls = {name: actor.logprobs.remote(tokens_T) for name, actor in self._rollouts.items()}
        return await self._all("give log-probs", calls, SCORE_DEADLINE_S)

    async def status(self) -> dict[str, Any]:
        """Episodes under way, tokens sampled so far, and warnings since the last look, over all actors."""
        calls = {name: actor.status.remote() for name, actor in (self._rollouts | self._judges).items()}
        answers = await self._all("status", calls, STATUS_DEADLINE_S)
        return {
            "episodes": sum(answer.get("episodes", 0) for answer in answers),
            "sampled_tokens": sum(answer.get("sampled_tokens", 0) for answer in answers),
            "warnings": [text for answer in answers for text in answer["warnings"]],
        }

    async def stop(self) -> list[str]:
        """Let every actor clean up, then end it. What could not clean up in time is ended all the same, and told."""
        actors = self._rollouts | self._judges
        complaints = []
        for name, call in {name: actor.stop.remote() for name, actor in actors.items()}.items():
            try:
                await self._all("stop", {name: call}, STOP_DEADLINE_S)
            except ActorFailure as failure:
                complaints.append(str(failure))
        for actor in actors.values():
            self._ray.kill(actor)
        return complaints

    async def _all(self, what: str, calls: dict[str, Any], deadline_s: float) -> list[Any]:
        answers = []
        until = asyncio.get_running_loop().time() + deadline_s
        for name, call in calls.items():
            try:
                async with asyncio.timeout_at(until):
                    answers.append(await call)
            except TimeoutError as error:
                raise ActorFailure(f"{name} did not {what} within {deadline_s:.0f} s") from error
            except self._ray.exceptions.RayError as error:
                raise ActorFailure(f"{name} could not {what}: {error}") from error
        return answers
