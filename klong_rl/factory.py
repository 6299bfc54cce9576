"""`python -m klong_rl.factory papers=DIR out=DIR evaluator.url=URL evaluator.model=NAME`: papers to tasks.

    check ─▶ collect (files, identifiers) ─▶ Pipeline (klong_rl.papers.pipeline) ─▶ OUT/report.json, a table

OUT is all that a later run needs: what is done is not done again, and no model is asked the same twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
from hydra.utils import instantiate
from rich.table import Table

from klong_rl import preflight, services
from klong_rl.cli import compose_config, run_main
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.interrupt import run_stoppable
from klong_rl.judging.endpoint import Endpoint
from klong_rl.judging.grader import Grader
from klong_rl.judging.protocols import Usage
from klong_rl.judging.record import Records
from klong_rl.judging.store import Store, write_whole
from klong_rl.monitor.batch_progress import BatchProgress, spent
from klong_rl.papers import arxiv, review
from klong_rl.papers.author import Author
from klong_rl.papers.collect import NoPaper, Source, collect, identifiers, slug
from klong_rl.papers.config import FactoryConfig, check
from klong_rl.papers.evaluation import evaluation_papers
from klong_rl.papers.pipeline import PAPERS, Outcome, Pipeline
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.stages import FAILED, OK, REJECTED
from klong_rl.papers.trial import Trial

REPORT = "report.json"
RUBRIC = {"_target_": "klong_rl.rewards.rubric.rubric", "_partial_": True}


def main(overrides: list[str]) -> int:
    """Run the batch; the exit code: 0 if it has a task or waits for a person, 1 if nothing came of it."""
    config = load_factory_config(overrides)
    out = Path(config.out).resolve()
    preflight.check_writable(out)
    with preflight.locked(out, another="out="):
        services.quiet_libraries()
        return run_stoppable(Factory(config, out).run, f"stopped; the same command on {out} goes on")


def load_factory_config(overrides: Sequence[str]) -> FactoryConfig:
    """The checked configuration. Raises UserError."""
    config = compose_config("factory", "factory_schema", FactoryConfig, overrides)
    check(config)
    return config


class Factory:
    """One run on one batch."""

    def __init__(self, config: FactoryConfig, out: Path) -> None:
        self.config = replace(config, out=str(out))
        self.out = out

    async def run(self) -> int:
        self._decide()
        sources = collect(Path(self.config.papers))
        evaluation = await evaluation_papers(self.config)
        async with AsyncExitStack() as stack:
            return await self._batch(stack, sources, evaluation)

    async def _batch(self, stack: AsyncExitStack, sources: list[Source | NoPaper], evaluation: list) -> int:
        names = identifiers(Path(self.config.papers))
        progress = stack.enter_context(BatchProgress("papers", len(sources) + len(names)))
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            progress.done(outcome.name, line_of(outcome))

        fetched = await self._fetch(names, done)
        for source in sources:
            if isinstance(source, NoPaper):
                done(Outcome(name=source.name, state=REJECTED, reason=source.reason))
        papers = [source for source in sources if isinstance(source, Source)] + fetched
        pipeline = await self._pipeline(stack, evaluation, progress)
        await pipeline.run(papers, done)
        self._report(outcomes, progress)
        return 0 if any(outcome.state not in (REJECTED, FAILED) for outcome in outcomes) else 1

    async def _fetch(self, names: Sequence[str], done) -> list[Source]:
        found = []
        for name in names:
            try:
                path = await arxiv.fetch(name, self.out / "fetched", self.config.arxiv_url)
            except Rejected as rejected:
                done(Outcome(name=slug(name), state=REJECTED, reason=str(rejected)))
            except InfrastructureFailure as failure:
                done(Outcome(name=slug(name), state=FAILED, reason=str(failure)))
            else:
                found.append(Source(path.name.split(".")[0], path, path, metadata={"identifier": name}))
        return found

    async def _pipeline(self, stack: AsyncExitStack, evaluation: list, progress: BatchProgress) -> Pipeline:
        config = self.config
        store = Store(self.out)
        endpoint = Endpoint(config.evaluator, store, role="evaluator", key="evaluator")
        stack.push_async_callback(endpoint.close)
        judge = config.judge if config.judge.endpoint.url else replace(config.judge, endpoint=config.evaluator)
        grader = Grader(judge, RUBRIC, store, Records(store.folder / "records"))
        stack.push_async_callback(grader.close)
        sandboxes = instantiate(services.sandbox_factory(config.sandbox, self.out, f"factory-{slug(self.out.name)}"))
        stack.push_async_callback(sandboxes.close)
        stack.push_async_callback(sandboxes.reap, set())
        try:
            await sandboxes.prepare(config.sandbox.image)
            await sandboxes.reap(set())  # of a run that was killed
        except (InfrastructureFailure, TaskFailure) as failure:
            raise UserError(f"sandbox: {failure}") from failure
        author = Author(endpoint, config.rubric, config.wait_s)
        return Pipeline(
            config, author, Trial(sandboxes, grader, config.trial), evaluation, progress.work, progress.spend
        )

    def _decide(self) -> None:
        """accept= and send_back=: a person's decision about the draft that a page shows."""
        config = self.config
        for names, decision in ((config.accept, review.ACCEPT), (config.send_back, review.SEND_BACK)):
            for name in names:
                folder = self.out / PAPERS / name
                if not folder.is_dir():
                    raise UserError(f"{decision}: {name} is no paper of {self.out}")
                review.decide(folder, review.shown_draft(folder), decision, config.note)

    def _report(self, outcomes: list[Outcome], progress: BatchProgress) -> None:
        outcomes.sort(key=lambda outcome: outcome.name)
        total = sum((outcome.usage for outcome in outcomes), Usage())
        rows = [msgspec.to_builtins(outcome) for outcome in outcomes]
        text = json.dumps({"papers": rows, "usage": msgspec.to_builtins(total)}, indent=1)
        write_whole(self.out / REPORT, f"{text}\n".encode())
        table = Table("outcome", "papers")
        for state, n in sorted(Counter(outcome.state for outcome in outcomes).items()):
            table.add_row("task" if state == OK else state, str(n))
        progress.console.print(table)
        progress.say(f"this run: {spent(progress.usage)}")
        progress.say(f"all runs on {self.out}: {spent(total)}")
        progress.say(
            f"tasks: {self.out / 'tasks'}; review pages: {self.out / 'review'}; all of it: {self.out / REPORT}"
        )


def line_of(outcome: Outcome) -> str:
    """What became of a paper, in one line."""
    if outcome.state != OK:
        return f"{outcome.name}: {outcome.state}" + (f": {outcome.reason}" if outcome.reason else "")
    reference = outcome.scores.get("reference")
    tried = "no code to try it on" if reference is None else f"its code scores {reference:.3f}"
    return f"{outcome.name}: task ({tried})"


if __name__ == "__main__":
    run_main(main)
