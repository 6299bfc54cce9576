"""The scripted evaluator: a rubric out of what a paper quotes, names and tabulates, and a critic of such rubrics.

Draft: a leaf for each file of the code (it is there, with the names that the paper quotes), one for the run's log, one
for each row of the first table with numbers (the row, cells joined by spaces, stands in the log), and one that is vague
on purpose. Critique: leaves that quote nothing can't be checked. Revision: those are left out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from klong_rl.judging.rubric import CODE, EXECUTION, RESULTS
from klong_rl.scripted.reading import files, table_rows, terms

LOG, RUN = "reproduce.log", "reproduce.sh"
VAGUE = "The submission follows the spirit of the paper as a whole."
ADDENDUM = "Use a POSIX shell and awk. Leave what reproduce.sh prints in reproduce.log. Figures are out of scope."


def scripted_evaluator(body: dict) -> str:
    """The reply to one of the questions of klong_rl.papers.prompts."""
    messages = body["messages"]
    shown = files(messages[1]["content"])
    if "The rubric:\n" in messages[1]["content"]:
        return json.dumps(_critique(messages[1]["content"]))
    revises = any("Revise the rubric" in message["content"] for message in messages[2:])
    return json.dumps(_draft(shown.pop("paper.md", ""), shown, revises))


def _draft(paper: str, code: dict[str, str], revises: bool) -> dict[str, Any]:
    """Two parts, each with its leaves; a part with one leaf is that leaf."""
    quoted, method, results = set(terms(paper)), [], []
    for path, text in sorted((code or {RUN: ""}).items()):
        name = path.rsplit("/", 1)[-1]
        names = sorted(set(re.findall(r"\w+", text)) & quoted)[:2]
        has = " and ".join(f"`{each}`" for each in names)
        wanted = f"`{name}` is there" + (f" and uses {has}, as the paper names it." if has else ", as it must be.")
        method.append(_node("method", wanted, CODE, f"the file {name}"))
    if not revises:
        method.append(_node("method", VAGUE, CODE, "an impression of the whole"))
    results.append(_node("results", f"`{LOG}` is there: {RUN} was run and left it.", EXECUTION, f"the file {LOG}"))
    for number, row in enumerate(table_rows(paper), 1):
        agrees = f"`{LOG}` has the line `{' '.join(row)}`, row {number} of the paper's table."
        results.append(_node("results", agrees, RESULTS, f"the file {LOG}"))
    nodes = [_node("", "The paper's contributions are reproduced.", "", "the whole submission", "root")]
    for part, leaves in (("The method is implemented.", method), ("The experiments were run and agree.", results)):
        if len(leaves) == 1:
            leaves[0]["parent"] = "root"
        else:
            nodes.append(_node("root", part, "", "what its leaves say", leaves[0]["parent"]))
        nodes += leaves
    for number, node in enumerate(nodes):
        node["id"] = node["id"] or f"leaf-{number}"
    return {"addendum": ADDENDUM, "nodes": nodes}


def _node(parent: str, requirements: str, category: str, evidence: str, name: str = "") -> dict[str, Any]:
    node = {"id": name, "parent": parent, "requirements": requirements, "weight": 1, "why": "as much as its brothers"}
    return node | {"category": category, "evidence": evidence}


def _critique(prompt: str) -> dict[str, Any]:
    draft = json.loads(prompt[prompt.rindex("The rubric:\n") + len("The rubric:\n") :])
    vague = [node["id"] for node in draft["nodes"] if node["category"] and not terms(node["requirements"])]
    problem = "It quotes nothing that a judge could look for."
    return {"problems": [{"node": name, "problem": problem, "fix": "Name a file or a line."} for name in vague]}
