"""The review page of a task: the paper beside the rubric, with what was argued, criticised and tried. No script in it.

A person accepts a draft or sends it back with a note; the decision is about that draft and no later one:

    OUT/papers/NAME/reviews.json    [{"draft": hash, "decision": "accept" | "send back", "note": text}, ...]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from klong_rl.errors import UserError
from klong_rl.judging.store import canonical, digest, write_whole
from klong_rl.papers.drafts import Draft, DraftNode, Problem
from klong_rl.papers.text import Paper

REVIEWS, SHOWN = "reviews.json", "shown-draft"
ACCEPT, SEND_BACK = "accept", "send back"


class Decision(msgspec.Struct, kw_only=True):
    draft: str
    decision: str
    note: str = ""


def draft_hash(draft: Draft) -> str:
    return digest(canonical(msgspec.to_builtins(draft)))


def decisions(folder: Path) -> dict[str, Decision]:
    """The newest decision about each draft. Raises UserError for a file that was spoilt."""
    path = folder / REVIEWS
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[Decision]) if path.exists() else []
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no list of decisions ({error}); mend or remove it") from error
    return {each.draft: each for each in found}


def decide(folder: Path, draft: str, decision: str, note: str) -> None:
    """Add a decision about the draft of this hash."""
    path = folder / REVIEWS
    known = json.loads(path.read_text()) if path.exists() else []
    added = {"draft": draft, "decision": decision, "note": note}
    write_whole(path, json.dumps([*known, added], indent=1).encode())


def shown_draft(folder: Path) -> str:
    """The hash of the draft on a paper's page. Raises UserError where there is no page."""
    try:
        return (folder / SHOWN).read_text()
    except FileNotFoundError:
        raise UserError(f"{folder} has no draft to decide about yet; the paper's outcome says why") from None


def show(
    folder: Path,
    page: Path,
    name: str,
    paper: Paper,
    draft: Draft,
    problems: Sequence[Problem],
    trial: Mapping[str, Any],
    state: str,
) -> None:
    """Write the page, and in the paper's folder which draft is on it."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("review.html").render(
        name=name, paper=paper, draft=draft, rows=list(outline(draft)), problems=problems, trial=trial, state=state
    )
    write_whole(page, text.encode(errors="replace"))
    write_whole(folder / SHOWN, draft_hash(draft).encode())


def outline(draft: Draft) -> list[tuple[int, DraftNode, float]]:
    """(depth, node, share of the whole score) of each node, parents before children."""
    children: dict[str, list[DraftNode]] = {}
    for node in draft.nodes:
        children.setdefault(node.parent, []).append(node)
    rows, waiting = [], [(0, node, 1.0) for node in reversed(children.get("", []))]
    while waiting:
        depth, node, share = waiting.pop()
        rows.append((depth, node, share))
        below = children.get(node.id, [])
        total = sum(child.weight for child in below) or 1
        waiting += [(depth + 1, child, share * child.weight / total) for child in reversed(below)]
    return rows
