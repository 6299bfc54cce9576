"""Rubric trees for tests, and where PaperBench's are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

PAPERBENCH = os.environ.get("KLONG_PAPERBENCH", "")
needs_paperbench = pytest.mark.skipif(
    not PAPERBENCH, reason="KLONG_PAPERBENCH names no folder with PaperBench's rubrics/ and graded/"
)


def paperbench(folder: str) -> list[Path]:
    return sorted(Path(PAPERBENCH, folder).glob("*.json")) if PAPERBENCH else []


def leaf(name: str, weight: float = 1, category: str = "Code Development", **fields: Any) -> dict[str, Any]:
    return node(name, weight, task_category=category, **fields)


def node(name: str, weight: float = 1, *children: dict[str, Any], **fields: Any) -> dict[str, Any]:
    tree = {"id": name, "requirements": f"what {name} asks for", "weight": weight, "sub_tasks": list(children)}
    return tree | {"task_category": None} | fields


def small() -> dict[str, Any]:
    """root(a 3: (a1 2, a2 1 run), b 1 result); a1 alone: 3/4 * 2/3 = 0.5."""
    a = node("a", 3, leaf("a1", 2), leaf("a2", 1, "Code Execution"))
    return node("root", 1, a, leaf("b", 1, "Result Analysis"))


def chain(depth: int) -> dict[str, Any]:
    """`depth` inner nodes, one in the other, around a leaf."""
    tree = leaf("leaf")
    for i in reversed(range(depth)):
        tree = node(f"n{i}", 1, tree)
    return tree
