"""Several rewards of one episode in one score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from klong_rl.errors import UserError
from klong_rl.failures import AgentFailure
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.types import Verdict

T = TypeVar("T")


class _Part:
    """The judge as one part sees it: evidence and questions bear its name, so that two parts of a kind don't mix."""

    def __init__(self, judge: Judge, prefix: str) -> None:
        self._judge, self._prefix = judge, prefix
        self.room_tokens = judge.room_tokens

    async def ask(self, messages: list[dict[str, str]], parse: Callable[[str], T], about: str = "") -> T:
        return await self._judge.ask(messages, parse, about=self._prefix + about)

    def fresh(self, image: str = "") -> AbstractAsyncContextManager[Any]:
        return self._judge.fresh(image)

    async def keep(self, name: str, data: bytes) -> str:
        return await self._judge.keep(self._prefix + name, data)


async def composite(
    episode: FinishedEpisode, sandbox: Any, judge: Judge, *, parts: Mapping[str, Mapping[str, Any]]
) -> Verdict:
    """The weighted mean of `parts`: a `reward` and its `weight` by name, computed in this order in one sandbox.

    A part that the agent made impossible scores 0; one that can't be computed for other reasons fails them all.
    """
    total = sum(part["weight"] for part in parts.values())
    if not parts or any(part["weight"] < 0 for part in parts.values()) or total <= 0:
        raise UserError(f"reward.parts={list(parts)} need weights of 0 or more that sum to more than 0")
    score, scores, evidence = 0.0, {}, {}
    for name, part in parts.items():
        try:
            verdict = await part["reward"](episode, sandbox, _Part(judge, f"{name}."))
        except AgentFailure as failure:
            verdict = Verdict(score=0.0, evidence={"agent_failure": str(failure)})
        score += part["weight"] / total * verdict.score
        scores |= {name: verdict.score} | {f"{name}.{key}": value for key, value in verdict.parts.items()}
        evidence |= {f"{name}.{key}": value for key, value in verdict.evidence.items()}
    scores["solved"] = float(all(scores.get(f"{name}.solved", scores[name] == 1.0) for name in parts))
    return Verdict(score=min(1.0, score), parts=scores, evidence=evidence)
