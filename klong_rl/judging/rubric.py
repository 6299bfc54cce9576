"""Rubric trees as PaperBench writes them: loaded, checked, pruned, and aggregated from the leaves upward.

    root ── weight 1
    ├── "the method is implemented"   weight 3        an inner node's score is the weighted mean of its children's
    │   ├── leaf, Code Development    weight 2        a leaf is judged
    │   └── leaf, Code Execution      weight 1
    └── leaf, Result Analysis         weight 1

A tree is kept flat, parents before children, so nothing here recurses. Source of the format: PaperBench,
arXiv 2504.01848, and `paperbench/rubric/tasks.py` of openai/frontier-evals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

CODE = "Code Development"
EXECUTION = "Code Execution"
RESULTS = "Result Analysis"
CATEGORIES = (CODE, EXECUTION, RESULTS)
SUBTREE = "Subtree"  # of a leaf that stands for what `cap` cut off: judged as a share, not as 0 or 1

MOST_NODES = 10_000  # ten times PaperBench's largest; each leaf is a request to the judge model
MOST_DEPTH = 64  # PaperBench's deepest has 7
_FIELDS = ("id", "requirements", "weight", "sub_tasks")


class RubricError(ValueError):
    """A tree that can't be scored by. Names the node and what is wrong with it."""


@dataclass(frozen=True)
class Node:
    """`parent` is an index into `Rubric.nodes`, -1 for the root. A leaf has a category, an inner node has "".

    `score` is what a graded tree records of the node; None in a rubric.
    """

    id: str
    requirements: str
    weight: float
    category: str
    parent: int
    depth: int
    score: float | None = None

    @property
    def is_leaf(self) -> bool:
        return self.category != ""


@dataclass(frozen=True)
class Rubric:
    """The nodes in pre-order: a parent stands before its children, and `nodes[0]` is the root."""

    nodes: tuple[Node, ...]

    @property
    def leaves(self) -> list[Node]:
        return [node for node in self.nodes if node.is_leaf]

    @property
    def version(self) -> str:
        """SHA-256 of all that a score depends on: the same for two trees that judge alike."""
        rows = [[n.id, n.requirements, n.weight, n.category, n.parent] for n in self.nodes]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def above(self, node: Node) -> list[str]:
        """The requirements of a node's ancestors, root first."""
        found: list[str] = []
        while node.parent >= 0:
            node = self.nodes[node.parent]
            found.append(node.requirements)
        return found[::-1]

    def to_json(self) -> str:
        """The tree in the format that `load` reads."""
        trees: list[dict[str, Any]] = []
        for node in self.nodes:
            fields = {"id": node.id, "requirements": node.requirements, "weight": node.weight}
            trees.append(fields | {"task_category": node.category or None, "sub_tasks": []})
            if node.parent >= 0:
                trees[node.parent]["sub_tasks"].append(trees[-1])
        return json.dumps(trees[0])


def load(text: str | bytes) -> Rubric:
    """A rubric, or a graded tree, from PaperBench's JSON. Raises RubricError."""
    try:
        return from_tree(json.loads(text))
    except RecursionError:
        raise RubricError(f"the tree is nested deeper than the {MOST_DEPTH} levels that are allowed") from None
    except ValueError as error:
        raise error if isinstance(error, RubricError) else RubricError(f"not JSON: {error}") from error


def from_tree(tree: Any) -> Rubric:
    """A rubric from the decoded JSON. Raises RubricError."""
    nodes: list[Node] = []
    n_children: list[int] = []
    seen: set[str] = set()
    waiting = [(tree, -1)]
    while waiting:
        raw, parent = waiting.pop()
        node, children = _node(raw, nodes, parent)
        if node.id in seen:
            raise RubricError(f"node {node.id} stands in the tree twice: a duplicate id, or a cycle")
        if len(nodes) == MOST_NODES:
            raise RubricError(f"the tree has more than {MOST_NODES} nodes; each leaf costs a request: split it")
        seen.add(node.id)
        nodes.append(node)
        n_children.append(len(children))
        waiting += [(child, len(nodes) - 1) for child in reversed(children)]
    _check_weights(nodes, n_children)
    return Rubric(tuple(nodes))


def _node(raw: Any, nodes: list[Node], parent: int) -> tuple[Node, list[Any]]:
    under = f"under node {nodes[parent].id}" if parent >= 0 else "at the root"
    if not isinstance(raw, dict):
        raise RubricError(f"{under}: a node is an object, not {type(raw).__name__}")
    missing = [name for name in _FIELDS if name not in raw]
    if missing:
        raise RubricError(f"{under}: node {raw.get('id', '(without id)')} lacks {', '.join(missing)}")
    name, requirements, weight, children = (raw[field] for field in _FIELDS)
    if not isinstance(name, str) or not name or not isinstance(requirements, str):
        raise RubricError(f"{under}: id={name!r} and requirements must be texts, the id not empty")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise RubricError(f"node {name}: weight={weight!r} must be a number, 0 or more")
    if not isinstance(children, list):
        raise RubricError(f"node {name}: sub_tasks must be a list, empty at a leaf, not {type(children).__name__}")
    category, depth = raw.get("task_category"), nodes[parent].depth + 1 if parent >= 0 else 0
    if children and category is not None:
        raise RubricError(f"node {name}: task_category={category!r} on a node with sub_tasks; only leaves have one")
    if not children and category not in (*CATEGORIES, SUBTREE):
        raise RubricError(f"leaf {name}: task_category={category!r}; use one of {', '.join(CATEGORIES)}")
    if depth > MOST_DEPTH:
        raise RubricError(f"node {name}: depth {depth} is over the {MOST_DEPTH} levels that are allowed")
    return Node(name, requirements, weight, category or "", parent, depth, raw.get("score")), children


def _check_weights(nodes: list[Node], n_children: list[int]) -> None:
    """A mean needs something that counts."""
    totals = [0.0] * len(nodes)
    for node in nodes[1:]:
        totals[node.parent] += node.weight
    for node, n, total in zip(nodes, n_children, totals, strict=True):
        if n and total <= 0:
            raise RubricError(f"node {node.id}: the weights of its {n} sub_tasks are all 0, so it has no score")


def aggregate(rubric: Rubric, leaf_scores: Mapping[str, float]) -> dict[str, float]:
    """The score of every node by its id, from those of the leaves. RubricError for a leaf without one."""
    sums = [[0.0, 0.0] for _ in rubric.nodes]  # weight times score, and weight, of the children
    scores: dict[str, float] = {}
    for i in reversed(range(len(rubric.nodes))):
        node = rubric.nodes[i]
        if node.is_leaf and node.id not in leaf_scores:
            raise RubricError(f"leaf {node.id} has no score; a leaf that was not judged is not a 0")
        scores[node.id] = float(leaf_scores[node.id]) if node.is_leaf else sums[i][0] / sums[i][1]
        if node.parent >= 0:
            sums[node.parent][0] += node.weight * scores[node.id]
            sums[node.parent][1] += node.weight
    return scores


def graded(rubric: Rubric, leaf_scores: Mapping[str, float], explanations: Mapping[str, str]) -> dict[str, Any]:
    """The tree with a score at each node, as PaperBench writes what its judge found. RubricError as `aggregate`."""
    scores, trees = aggregate(rubric, leaf_scores), []
    for node in rubric.nodes:
        fields = {"id": node.id, "requirements": node.requirements, "weight": node.weight, "score": scores[node.id]}
        said = explanations.get(node.id, "") if node.is_leaf else "Aggregated score from sub-tasks."
        fields |= {"valid_score": True, "task_category": node.category or None, "explanation": said}
        trees.append(fields | {"judge_metadata": None, "sub_tasks": []})
        if node.parent >= 0:
            trees[node.parent]["sub_tasks"].append(trees[-1])
    return trees[0]


def code_only(rubric: Rubric) -> Rubric:
    """The tree of the leaves that ask for code, as in PaperBench Code-Dev. RubricError if none of them counts."""
    counts: list[bool] = []  # what has weight 0, or stands under such a node, is never worth a request
    for node in rubric.nodes:
        counts.append(node.parent < 0 or (node.weight > 0 and counts[node.parent]))
    kept: set[int] = set()
    for i in reversed(range(len(rubric.nodes))):
        if i in kept or (rubric.nodes[i].category == CODE and counts[i]):
            kept |= {i, rubric.nodes[i].parent}
    if not kept:
        raise RubricError(f"nothing of the rubric {rubric.nodes[0].id} is left: no {CODE} leaf has a weight above 0")
    return _renumbered(rubric, sorted(kept - {-1}))


def cap(rubric: Rubric, max_depth: int) -> Rubric:
    """No node deeper than `max_depth` (the root has 0): what stands there becomes one leaf with the outline it had."""
    if max_depth < 0:
        raise RubricError(f"max_depth={max_depth} must be 0 or more")
    outlines: dict[int, list[str]] = {}
    roots: dict[int, int] = {}  # of a node below the cut, the node at the cut
    for i, node in enumerate(rubric.nodes):
        roots[i] = i if node.depth <= max_depth else roots[node.parent]
        if node.depth > max_depth:
            indent = "  " * (node.depth - max_depth - 1)
            outlines.setdefault(roots[i], []).append(f"{indent}- (weight {node.weight:g}) {node.requirements}")
    cut = {i: "\n".join([rubric.nodes[i].requirements, *lines]) for i, lines in outlines.items()}
    nodes = tuple(
        replace(node, category=SUBTREE, requirements=cut[i]) if i in cut else node
        for i, node in enumerate(rubric.nodes)
    )
    return _renumbered(Rubric(nodes), [i for i, node in enumerate(nodes) if node.depth <= max_depth])


def _renumbered(rubric: Rubric, kept: list[int]) -> Rubric:
    new = {old: i for i, old in enumerate(kept)} | {-1: -1}
    return Rubric(tuple(replace(rubric.nodes[i], parent=new[rubric.nodes[i].parent]) for i in kept))
