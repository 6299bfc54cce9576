"""A draft that keeps the rules, to be spoilt by tests."""

from klong_rl.judging.rubric import CODE, RESULTS
from klong_rl.papers.drafts import Draft, DraftNode, Subject

CODE_LINE = "total = sum(weight * value for weight, value in pairs)"
SUBJECT = Subject("p", "P", "# P\n\nThe paper says a lot.", {"main.py": CODE_LINE}, ["github.com/us/ours"])


def node(name: str, parent: str = "root", category: str = CODE, **fields) -> DraftNode:
    given = {"requirements": f"The requirement of {name} is met.", "weight": 2, "why": "it is central"}
    return DraftNode(**{"id": name, "parent": parent, "category": category, "evidence": "a file"} | given | fields)


def draft(*nodes: DraftNode, addendum: str = "Use seed 0.") -> Draft:
    given = nodes or (node("a"), node("b"), node("c", category=RESULTS))
    root = node("root", parent="", category="", why="")
    return Draft(addendum=addendum, nodes=[root, *given])
