"""What the evaluator writes about a paper: an addendum, and a rubric as a flat list of nodes.

A list with parents, not a tree: constrained decoding of recursive schemas is not to be had everywhere. Each weight
comes with a reason and each leaf with the evidence that a judge would look for; both stay in draft.json for the review,
and PaperBench's rubric.json gets the requirements. Pure.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from klong_rl.judging.rubric import CATEGORIES, Rubric, from_tree


@dataclass(frozen=True)
class Subject:
    """A paper as the evaluator has it: its Markdown, its code by path, and links that the task must not name."""

    name: str
    title: str
    paper: str
    code: Mapping[str, str]
    forbidden: Sequence[str]


class DraftNode(msgspec.Struct, kw_only=True):
    """`parent` is the id of another node, "" for the root; `category` is "" on a node with children."""

    id: str
    parent: str
    requirements: str
    weight: int
    why: str
    category: str
    evidence: str


class Draft(msgspec.Struct, kw_only=True):
    addendum: str
    nodes: list[DraftNode]


class Problem(msgspec.Struct, kw_only=True):
    """What a critic says against a node ("" for the whole), and how to mend it."""

    node: str
    problem: str
    fix: str


class Critique(msgspec.Struct, kw_only=True):
    problems: list[Problem]


def _object(title: str, **properties: Any) -> dict[str, Any]:
    """As strict endpoints want it: all fields required, no others."""
    required = list(properties)
    shape = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ({"title": title} if title else {}) | shape


_TEXT = {"type": "string"}
_NODE = _object(
    "",
    id=_TEXT,
    parent=_TEXT,
    requirements=_TEXT,
    weight={"type": "integer", "minimum": 1, "maximum": 100},
    why=_TEXT,
    category={"type": "string", "enum": ["", *CATEGORIES]},
    evidence=_TEXT,
)
DRAFT_SCHEMA = _object("rubric_draft", addendum=_TEXT, nodes={"type": "array", "items": _NODE})
CRITIQUE_SCHEMA = _object(
    "rubric_critique",
    problems={"type": "array", "items": _object("", node=_TEXT, problem=_TEXT, fix=_TEXT)},
)


def read_json(text: str, kind: type) -> Any:
    """The struct in a reply: the whole of it, or what stands between its first and its last brace.

    Raises ValueError, worded for the model.
    """
    match = re.search(r"\{.*\}", text, re.DOTALL)
    if match is None:
        raise ValueError("Your answer had no JSON object. Answer again with one object and nothing else.")
    try:
        return msgspec.json.decode(match[0].encode(errors="replace"), type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(f"Your answer is not the JSON that was asked for: {error}. Answer again, whole.") from error


def rubric_of(draft: Draft, name: str) -> Rubric:
    """The tree of a draft, its ids made new from `name` and their place, as PaperBench has them (UUIDs).

    Raises ValueError, worded for the model (RubricError is one), for a list that is no tree.
    """
    children: dict[str, list[DraftNode]] = {}
    known = {node.id for node in draft.nodes}
    if len(known) < len(draft.nodes):
        raise ValueError("Two nodes have the same id; give each its own.")
    for node in draft.nodes:
        if node.parent and node.parent not in known:
            raise ValueError(f"Node {node.id}: its parent {node.parent!r} is none of the nodes.")
        children.setdefault(node.parent, []).append(node)
    roots = children.get("", [])
    if len(roots) != 1:
        raise ValueError(f"There are {len(roots)} nodes with an empty parent; exactly one, the root, has none.")
    reached: list[str] = []
    tree = _tree(roots[0], children, name, reached, 0)
    if lost := known - set(reached):
        raise ValueError(f"Nodes {sorted(lost)[:5]} are not under the root: their parents form a cycle.")
    return from_tree(tree)


def node_id(name: str, node: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"klong_rl/{name}/{node}"))


def _tree(node: DraftNode, children: dict[str, list[DraftNode]], name: str, reached: list[str], depth: int) -> dict:
    if depth > 40:
        raise ValueError(f"Node {node.id} is {depth} levels deep; make the tree flatter.")
    reached.append(node.id)
    below = [_tree(child, children, name, reached, depth + 1) for child in children.get(node.id, [])]
    return {
        "id": node_id(name, node.id),
        "requirements": node.requirements.strip(),
        "weight": node.weight,
        "sub_tasks": below,
        "task_category": node.category or None,
        "finegrained_task_category": None,
    }
