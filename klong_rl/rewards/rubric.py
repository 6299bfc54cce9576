"""PaperBench's reward: a judge model grades the leaves of a rubric tree, and weighted means go up to the root.

Each leaf is one request: the requirement, and of the submission's files those that it is about, as many as the judge's
context holds. A leaf is 0 or 1. One without a valid reply is invalid, never a 0, and then there is no verdict: the
judge failed, not the agent. Source: PaperBench, arXiv 2504.01848, section 4.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from klong_rl.blocking import in_thread
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.judging.prompts import leaf_messages, parse_score
from klong_rl.judging.rubric import Node, Rubric, RubricError, cap, code_only, from_tree, graded, load
from klong_rl.judging.submission import Ranking, read_submission
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.types import Verdict

LEAVES_AT_ONCE = 64  # of one episode: more only wait in the queue, each with its prompt in memory
NAMED = 3  # leaves, in a failure


async def rubric(
    episode: FinishedEpisode,
    sandbox: Any,
    judge: Judge,
    *,
    only_code: bool = False,
    max_depth: int | None = None,
    most_files: int = 200,
    file_bytes: int = 65536,
) -> Verdict:
    """The root's score. The task's secret holds the `rubric`, a tree or the path of its JSON, and perhaps the `paper`
    and the `folder` that is the submission, relative to the working directory.

    `only_code` judges the leaves that ask for code alone (PaperBench Code-Dev); `max_depth` joins what is deeper into
    one question. Of the submission at most `most_files` files are read, and `file_bytes` of each. No files score 0.
    """
    tree = await in_thread(_rubric_of, episode, only_code, max_depth)
    await judge.keep("rubric", tree.to_json().encode())
    await sandbox.halt()  # nothing that the agent left running has a hand in what is read
    secret = episode.spec.task.secret
    files = await read_submission(sandbox, most_files, file_bytes, str(secret.get("folder", ".")))
    said = await _judged(judge, tree, files, str(secret.get("paper", ""))) if files else {}
    scores = {leaf.id: said[leaf.id].score if files else 0.0 for leaf in tree.leaves}
    why = {leaf.id: said[leaf.id].reply if files else "There is no submission." for leaf in tree.leaves}
    whole = graded(tree, scores, why)
    root, kept = whole["score"], await judge.keep("graded_task_tree", json.dumps(whole).encode())
    by_category: dict[str, list[float]] = {}
    for leaf in tree.leaves if files else ():
        by_category.setdefault(leaf.category, []).append(scores[leaf.id])
    parts = {category: sum(found) / len(found) for category, found in by_category.items()}
    evidence = {"rubric_version": tree.version, "leaves": str(len(tree.leaves)), "files": str(len(files))}
    evidence["graded_task_tree"] = kept
    return Verdict(score=root, parts=parts | {"rubric": root, "solved": float(root == 1.0)}, evidence=evidence)


def _rubric_of(episode: FinishedEpisode, only_code: bool, max_depth: int | None) -> Rubric:
    """The tree to judge by. Raises TaskFailure for one that can't be used."""
    given = episode.spec.task.secret.get("rubric")
    try:
        if isinstance(given, str):
            tree = load(Path(given).read_bytes())
        elif isinstance(given, Mapping):
            tree = from_tree(given)
        else:
            raise RubricError("its secret has no rubric: a tree, or the path of one")
        tree = code_only(tree) if only_code else tree
        return tree if max_depth is None else cap(tree, max_depth)
    except (RubricError, OSError) as error:
        raise TaskFailure(f"task {episode.spec.task.id} can't be judged by its rubric: {error}") from error


class Said(NamedTuple):
    """What the judge made of a leaf."""

    score: float
    reply: str


async def _judged(judge: Judge, tree: Rubric, files: Mapping[str, str], paper: str) -> dict[str, Said]:
    """The score of each leaf by its id, with its reply. Raises InfrastructureFailure if one of them is invalid."""
    room, ranking = asyncio.Semaphore(LEAVES_AT_ONCE), await in_thread(Ranking, files)

    async def score(leaf: Node) -> Said:
        async with room:
            above = tree.above(leaf)
            order = ranking.order(" ".join([leaf.requirements, *above[-1:]]))
            messages = leaf_messages(leaf, above, paper, files, order, judge.room_tokens)
            return await judge.ask(messages, lambda said: Said(parse_score(said, leaf.category), said), about=leaf.id)

    leaves = tree.leaves
    asked = [asyncio.ensure_future(score(leaf)) for leaf in leaves]
    try:
        answers = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        for ask in asked:
            ask.cancel()
    invalid = {leaf.id: answer for leaf, answer in zip(leaves, answers, strict=True) if isinstance(answer, Exception)}
    for answer in invalid.values():
        if not isinstance(answer, InfrastructureFailure):
            raise answer
    if invalid:
        first = next(iter(invalid.values()))
        raise InfrastructureFailure(
            f"{len(invalid)} of {len(leaves)} leaves are invalid ({', '.join(list(invalid)[:NAMED])}): {first}"
        )
    return {leaf.id: answer for leaf, answer in zip(leaves, answers, strict=True)}
