"""The rules that a draft must keep before it is tried: of each violation the evaluator is told in a sentence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from klong_rl.judging.rubric import CODE, EXECUTION, RESULTS, Rubric
from klong_rl.papers.config import RubricConfig
from klong_rl.papers.drafts import Draft, Subject, rubric_of
from klong_rl.papers.text import words

LEAK_WORDS = 12  # in a row, from a requirement, in what the agent reads beside the paper
LEAST_LINE = 24  # characters of a line of the reference code: shorter ones are anybody's
LEAST_REQUIREMENT, MOST_REQUIREMENT = 15, 1500  # characters
SHOWN = 8  # violations that are told at once


def check_draft(draft: Draft, subject: Subject, rules: RubricConfig) -> Rubric:
    """The rubric of a draft that keeps all rules. Raises ValueError with what to mend."""
    rubric = rubric_of(draft, subject.name)
    found = [*shape(draft, rubric, rules), *weights(draft), *leaves(draft)]
    found += leaks(draft, draft.addendum, subject.paper, subject.code, subject.forbidden)
    if found:
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        raise ValueError("These must be mended:\n- " + "\n- ".join(found[:SHOWN]) + more + "\nAnswer again, whole.")
    return rubric


def shape(draft: Draft, rubric: Rubric, rules: RubricConfig) -> list[str]:
    found, n = [], len(rubric.leaves)
    if not rules.least_leaves <= n <= rules.most_leaves:
        found.append(f"The rubric has {n} leaves; it needs {rules.least_leaves} to {rules.most_leaves}.")
    deepest = max(node.depth for node in rubric.nodes)
    if deepest > rules.most_depth:
        found.append(f"The rubric is {deepest} levels deep; {rules.most_depth} at most.")
    categories = {leaf.category for leaf in rubric.leaves}
    if CODE not in categories:
        found.append(f"No leaf is of {CODE}.")
    if not categories & {EXECUTION, RESULTS}:
        found.append(f"No leaf is of {EXECUTION} or {RESULTS}: code that never ran would get all points.")
    parents = Counter(node.parent for node in draft.nodes)
    alone = [node.id for node in draft.nodes if parents[node.id] == 1]
    if alone:
        found.append(f"Nodes {alone[:5]} have a single child; put the child in the node's place.")
    return found


def weights(draft: Draft) -> list[str]:
    odd = [node for node in draft.nodes if not 1 <= node.weight <= 100]
    found = [f"Node {node.id}: weight {node.weight} is not 1 to 100." for node in odd]
    unargued = [node.id for node in draft.nodes if node.parent and len(node.why.split()) < 2]
    if unargued:
        found.append(f"Nodes {unargued[:5]}: say in `why` why the weight is what it is.")
    return found


def leaves(draft: Draft) -> list[str]:
    inner = {node.parent for node in draft.nodes}
    found, seen = [], Counter(" ".join(words(node.requirements)) for node in draft.nodes if node.id not in inner)
    for node in draft.nodes:
        if node.id in inner:
            continue
        if not LEAST_REQUIREMENT <= len(node.requirements.strip()) <= MOST_REQUIREMENT:
            found.append(f"Leaf {node.id}: a requirement has {LEAST_REQUIREMENT} to {MOST_REQUIREMENT} characters.")
        if seen[" ".join(words(node.requirements))] > 1:
            found.append(f"Leaf {node.id}: another leaf asks for the same.")
        if len(node.evidence.split()) < 2:
            found.append(f"Leaf {node.id}: say in `evidence` what in a submission shows it: a file, a log, an output.")
    return found


def leaks(draft: Draft, told: str, paper: str, code: Mapping[str, str], forbidden: Iterable[str]) -> list[str]:
    """What the agent is told and must find out by itself: requirements, lines of the reference code, its place."""
    inner = {node.parent for node in draft.nodes}
    in_told, in_paper = (f" {' '.join(words(text))} " for text in (told, paper))
    found = []
    for node in draft.nodes:
        runs = _runs(words(node.requirements)) if node.id not in inner else ()
        if any(run in in_told and run not in in_paper for run in runs):
            found.append(f"The addendum repeats the requirement of leaf {node.id}; tell facts, not what is graded.")
    lines = {" ".join(line.split()) for text in code.values() for line in text.splitlines()}
    given, public = " ".join(told.split()), " ".join(paper.split())
    if any(len(line) >= LEAST_LINE and line in given and line not in public for line in lines):
        found.append("The addendum has a line of the reference code; that is the answer, so leave it out.")
    found += [f"The addendum names {link}, which is on the blacklist." for link in forbidden if link in told]
    return found


def _runs(found: list[str]) -> list[str]:
    """Of LEAK_WORDS words in a row; of a shorter text, all of it."""
    length = min(LEAK_WORDS, len(found))
    return [f" {' '.join(found[i : i + length])} " for i in range(len(found) - length + 1)]
