"""The evaluator at work: it writes a draft, criticises it, revises it, each answer valid by the rules before it counts.

draft ─▶ rules ─▶ critique ─▶ no problems: done
   ▲       │ ask again          │ problems
   └───────┘                    └─▶ revision ─▶ rules ─▶ critique ...     at most `rounds` times
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.endpoint import Answer, Endpoint, Refused
from klong_rl.papers.config import RubricConfig
from klong_rl.papers.drafts import CRITIQUE_SCHEMA, DRAFT_SCHEMA, Critique, Draft, Problem, Subject, read_json
from klong_rl.papers.prompts import criticise_messages, revise_messages, write_messages
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.rules import check_draft
from klong_rl.papers.stages import Spending

T = TypeVar("T")
NO_SCHEMA = (400, 404, 422, 501)  # how endpoints say that they don't know response_format


class Author:
    """The evaluator, for any number of papers. `wait_s` bounds the waiting for it in one call here."""

    def __init__(self, endpoint: Endpoint, rules: RubricConfig, wait_s: float) -> None:
        self._endpoint, self._rules, self._wait_s = endpoint, rules, wait_s

    @property
    def name(self) -> str:
        return self._endpoint.name

    async def write(self, subject: Subject, spending: Spending) -> Draft:
        """A draft that keeps the rules. Raises Rejected where none comes, InfrastructureFailure."""
        messages = write_messages(subject, self._endpoint.room_tokens, self._rules)
        return await self._ask(messages, DRAFT_SCHEMA, self._draft_reader(subject), subject, spending)

    async def criticise(self, subject: Subject, draft: Draft, spending: Spending) -> Critique:
        messages = criticise_messages(subject, draft, self._endpoint.room_tokens)
        return await self._ask(messages, CRITIQUE_SCHEMA, lambda reply: read_json(reply, Critique), subject, spending)

    async def revise(self, subject: Subject, draft: Draft, problems: Sequence[Problem], spending: Spending) -> Draft:
        messages = revise_messages(subject, draft, problems, self._endpoint.room_tokens, self._rules)
        return await self._ask(messages, DRAFT_SCHEMA, self._draft_reader(subject), subject, spending)

    def _draft_reader(self, subject: Subject) -> Callable[[str], Draft]:
        def read(reply: str) -> Draft:
            draft = read_json(reply, Draft)
            check_draft(draft, subject, self._rules)
            return draft

        return read

    async def _ask(
        self,
        messages: list[dict[str, str]],
        schema: dict[str, Any],
        parse: Callable[[str], T],
        subject: Subject,
        spending: Spending,
    ) -> T:
        """What `parse` makes of the reply; asked again with its complaint, `rubric.attempts` times in all."""
        said, problem = list(messages), ""
        for number in range(self._rules.attempts):
            # Told apart by its number: who gives the same invalid answer twice is asked the same, and may do better.
            answer = await self._answer(said, schema, subject.name, f"attempt {number}")
            spending.add(answer.usage)
            if not answer.is_cut and not answer.refusal:
                await self._endpoint.keep(answer)  # an invalid one too: a later run asks the same again, at no cost
            try:
                if answer.refusal:
                    raise ValueError(f"You refused ({answer.refusal}). It is an ordinary grading task; answer it.")
                if answer.is_cut:
                    raise ValueError("Your answer was too long and was cut off. Answer again, with fewer nodes.")
                return parse(answer.text)
            except ValueError as error:
                problem = str(error)
                before = {"role": "assistant", "content": answer.text or "(no answer)"}
                said = [*messages, before, {"role": "user", "content": problem}]
        raise Rejected(
            f"rubric: no valid answer of {self.name} in {self._rules.attempts}; the last problem: "
            f"{' '.join(problem.split())[:300]}"
        )

    async def _answer(self, messages: list[dict[str, str]], schema: dict[str, Any], group: str, sample: str) -> Answer:
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(self._wait_s) as clock:
                if endpoint.takes_schema:
                    try:
                        return await endpoint.ask(messages, group, schema=schema, sample=sample)
                    except Refused as refused:
                        if refused.status not in NO_SCHEMA:
                            raise
                answer = await endpoint.ask(messages, group, sample=sample)
                endpoint.takes_schema = False  # without the schema it does answer: it stands in the messages too
                return answer
        except TimeoutError as error:
            if not clock.expired():
                raise
            trouble = f"; last trouble: {endpoint.trouble}" if endpoint.trouble else ""
            raise InfrastructureFailure(f"no answer of {self.name} within wait_s={self._wait_s:g}{trouble}") from error
