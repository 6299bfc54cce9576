"""One batch: each paper through its stages, none hurt by another.

    convert ─▶ filter ─▶ code ─▶ draft ─▶ critique-1 ─▶ revision-1 ... ─▶ trial ─▶ review page ─▶ OUT/tasks/NAME

Converting runs several at once; filtering goes by name, since a duplicate is one of an earlier paper; what asks the
evaluator runs `at_once` papers at once. A stage that is there for the same input isn't made again (papers.stages).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from klong_rl.blocking import in_thread
from klong_rl.errors import UserError
from klong_rl.failures import EpisodeFailure
from klong_rl.judging.protocols import Usage
from klong_rl.papers import review
from klong_rl.papers.author import Author
from klong_rl.papers.code_links import official
from klong_rl.papers.collect import Source, digest_of, read_code
from klong_rl.papers.config import FactoryConfig
from klong_rl.papers.convert import convert
from klong_rl.papers.drafting import Drafting
from klong_rl.papers.drafts import Draft, Subject, rubric_of
from klong_rl.papers.filters import Known, check_clean, check_new, check_quality
from klong_rl.papers.folder import write_folder
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.stages import FAILED, OK, REJECTED, Sheet, Spending
from klong_rl.papers.text import Paper
from klong_rl.papers.trial import Trial
from klong_rl.tasks.papers import INSTRUCTION, load_task
from klong_rl.types import Limits

WAITS = "waits for review"
PAPERS, TASKS, REVIEW = "papers", "tasks", "review"  # below OUT


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a paper: `state` is ok (a task), rejected, failed (tried again next time) or waits for review."""

    name: str
    state: str
    reason: str = ""
    scores: dict[str, float | None] = {}
    usage: Usage = Usage()


class Pipeline:
    """The stages on the parts that a batch shares. `tell(name, what)` and `spend(usage)` are for the display."""

    def __init__(
        self,
        config: FactoryConfig,
        author: Author,
        trial: Trial,
        evaluation: Sequence[Known],
        tell: Callable[[str, str], None],
        spend: Callable[[Usage], None],
    ) -> None:
        self._config, self._trial, self._evaluation = config, trial, evaluation
        self._tell, self._spend = tell, spend
        self._drafting = Drafting(author, config)
        self._out = Path(config.out)
        self._converting = asyncio.Semaphore(config.convert.at_once)
        self._asking = asyncio.Semaphore(config.at_once)

    async def run(self, sources: Sequence[Source], done: Callable[[Outcome], None]) -> list[Outcome]:
        """The outcome of each paper, told as it comes."""
        earlier: list[Known] = []
        turn = asyncio.Lock()  # fair, so that papers are filtered in their order
        converted: dict[str, asyncio.Future[Paper]] = {
            source.name: asyncio.ensure_future(self._convert(source)) for source in sources
        }

        async def one(source: Source) -> Outcome:
            outcome = await self._guarded(source, lambda: self._one(source, converted[source.name], earlier, turn))
            done(outcome)
            return outcome

        try:
            return list(await asyncio.gather(*map(one, sources)))
        finally:
            for future in converted.values():
                future.cancel()

    async def _guarded(self, source: Source, work: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Whatever is wrong with one paper, or with us while we had it, is its outcome."""
        name = source.name
        try:
            return self._with_usage(await work())
        except Rejected as rejected:
            shutil.rmtree(self._out / TASKS / name, ignore_errors=True)  # of an earlier state of the paper
            outcome = Outcome(name=name, state=REJECTED, reason=str(rejected))
        except (EpisodeFailure, UserError, OSError) as failure:  # such as a file that can't be read, a spoilt decision
            outcome = Outcome(name=name, state=FAILED, reason=" ".join(str(failure).split()))
        return self._with_usage(outcome)

    def _with_usage(self, outcome: Outcome) -> Outcome:
        """With what all its stages have cost, in this run and before."""
        stages = self._sheet(outcome.name).all()
        return msgspec.structs.replace(outcome, usage=sum((stage.usage for stage in stages), Usage()))

    async def _one(
        self, source: Source, converted: asyncio.Future[Paper], earlier: list[Known], turn: asyncio.Lock
    ) -> Outcome:
        async with turn:
            paper = await converted
            known = await self._filter(source, paper, earlier)
            earlier.append(known)
        async with self._asking:
            return await self._make(source, paper)

    def _sheet(self, name: str) -> Sheet:
        return Sheet(self._out / PAPERS / name, lambda stage: self._tell(name, stage), self._spend)

    async def _convert(self, source: Source) -> Paper:
        async def make(_: Spending) -> Any:
            async with self._converting:
                return msgspec.to_builtins(
                    await convert(source.source, self._out / PAPERS / source.name, self._config.convert)
                )

        limits = asdict(self._config.convert) | {"at_once": 0}
        depends_on = [await in_thread(digest_of, source), limits]
        paper = msgspec.convert(await self._sheet(source.name).stage("convert", depends_on, make), Paper)
        title = str(source.metadata.get("title", "") or paper.title)
        return msgspec.structs.replace(paper, title=" ".join(title.split()))

    async def _filter(self, source: Source, paper: Paper, earlier: Sequence[Known]) -> Known:
        rules = self._config.quality
        known = await in_thread(Known.of, source.name, paper, rules.ngram_words)

        async def make(_: Spending) -> Any:
            check_quality(paper, rules)
            await in_thread(check_clean, known, self._evaluation, rules)
            await in_thread(check_new, known, earlier, rules)
            return {"evaluation_papers": len(self._evaluation), "compared_with": [each.name for each in earlier]}

        others = [[each.name, each.key] for each in (*self._evaluation, *earlier)]
        depends_on = [known.key, asdict(rules), others]
        await self._sheet(source.name).stage("filter", depends_on, make)
        return known

    async def _make(self, source: Source, paper: Paper) -> Outcome:
        """From a paper that passed to its task."""
        sheet, name = self._sheet(source.name), source.name
        code = await in_thread(read_code, source.code)

        async def find(_: Spending) -> Any:
            own, mentioned = official(paper.markdown, source.metadata.get("code", ()))
            return {"official": own, "mentioned": mentioned, "files": sorted(code)}

        links = await sheet.stage("code", [paper.markdown, source.metadata.get("code"), sorted(code)], find)
        subject = Subject(name, paper.title, paper.markdown, code, links["official"])
        draft, problems = await self._drafting.run(sheet, subject, review.decisions(sheet.folder))
        rubric = rubric_of(draft, name)
        candidate = sheet.folder / "task" / name
        await in_thread(
            write_folder, candidate, paper, sheet.folder, source.source, draft.addendum, rubric, links["official"]
        )

        async def attempt(spending: Spending) -> Any:
            image = self._config.sandbox.image
            try:
                task = load_task(candidate, image=image, instruction=INSTRUCTION, limits=Limits())
            except UserError as error:
                raise Rejected(f"task: {error}") from error
            return await self._trial.run(task, code, spending)

        judge = self._config.judge.endpoint.model
        tried = [rubric.version, paper.markdown, draft.addendum, code, asdict(self._config.trial), judge]
        scores, rejected = {}, None
        try:
            scores = await sheet.stage("trial", tried, attempt)
        except Rejected as error:
            rejected = error
        state = self._state(sheet.folder, draft) if rejected is None else REJECTED
        page = self._out / REVIEW / f"{name}.html"
        await in_thread(review.show, sheet.folder, page, name, paper, draft, problems, scores, str(rejected or state))
        if rejected is not None:
            raise rejected
        target = self._out / TASKS / name
        if state == OK:
            await in_thread(_copy, candidate, target)
        elif target.exists():
            shutil.rmtree(target)
        return Outcome(name=name, state=state, scores=scores)

    def _state(self, folder: Path, draft: Draft) -> str:
        decision = review.decisions(folder).get(review.draft_hash(draft))
        accepted = decision is not None and decision.decision == review.ACCEPT
        return OK if accepted or not self._config.review else WAITS


def _copy(candidate: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(candidate, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
