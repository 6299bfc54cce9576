"""The drafts of one paper, each a stage: the first, those after the critic's rounds, those after a person's notes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from klong_rl.papers.author import Author
from klong_rl.papers.config import FactoryConfig
from klong_rl.papers.drafts import Critique, Draft, Problem, Subject
from klong_rl.papers.review import SEND_BACK, Decision, draft_hash
from klong_rl.papers.stages import Sheet, Spending


class Drafting:
    """Stages `draft`, `critique-N`, `revision-N` and `returned-N`."""

    def __init__(self, author: Author, config: FactoryConfig) -> None:
        self._author, self._rounds = author, config.rubric.rounds
        self._matters = [asdict(config.rubric), config.evaluator.model]

    async def run(self, sheet: Sheet, subject: Subject, decided: Mapping[str, Decision]) -> tuple[Draft, list[Problem]]:
        """The last draft, and the problems that were mended on the way. Raises Rejected, InfrastructureFailure."""
        author, about = self._author, [subject.title, subject.paper, dict(subject.code), list(subject.forbidden)]
        found: list[Problem] = []

        async def stage(name: str, on: list[Any], kind: type, ask: Callable[[Spending], Awaitable[Any]]) -> Any:
            async def make(spending: Spending) -> Any:
                return msgspec.to_builtins(await ask(spending))

            return msgspec.convert(await sheet.stage(name, [about, self._matters, *on], make), kind)

        draft = await stage("draft", [], Draft, lambda spending: author.write(subject, spending))
        for number in range(1, self._rounds + 1):
            on = [draft_hash(draft)]
            critique = await stage(
                f"critique-{number}", on, Critique, lambda s, d=draft: author.criticise(subject, d, s)
            )
            if not critique.problems:
                break
            found += critique.problems
            draft = await stage(
                f"revision-{number}",
                [*on, msgspec.to_builtins(critique)],
                Draft,
                lambda s, d=draft, p=critique.problems: author.revise(subject, d, p, s),
            )
        number = 0
        while (decision := decided.get(draft_hash(draft))) is not None and decision.decision == SEND_BACK:
            number, note = number + 1, Problem(node="", problem=decision.note, fix="")
            found.append(note)
            draft = await stage(
                f"returned-{number}",
                [draft_hash(draft), decision.note],
                Draft,
                lambda s, d=draft, n=note: author.revise(subject, d, [n], s),
            )
        return draft, found
