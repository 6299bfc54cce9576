"""The official code that a paper names: on the blacklist of its task, for who may fetch it has nothing to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Hosts of code, models and data, with how many parts of the path name a project there.
HOSTS = {
    "github.com": 2,
    "gitlab.com": 2,
    "bitbucket.org": 2,
    "codeberg.org": 2,
    "huggingface.co": 2,
    "zenodo.org": 2,
    "anonymous.4open.science": 2,
    "sourceforge.net": 2,
    "gist.github.com": 2,
}
NEAR = 160  # characters before or after a link in which such a word makes it the paper's own
_OWN = re.compile(
    r"\b(our|we|this paper|official|available|released?|implementation|open[- ]?sourced?|project page|reproduce)\b",
    re.IGNORECASE,
)
_URL = re.compile(r"(?:https?://)?(?:www\.)?([a-z0-9.-]+\.[a-z]{2,})(/[^\s\"'<>()\[\]{}`|*]*)", re.IGNORECASE)


def projects(text: str) -> list[tuple[str, int]]:
    """(host/owner/name, where its link stands) of every link to a project, in order; each project once."""
    found: dict[str, int] = {}
    for match in _URL.finditer(text):
        host = match[1].lower().removeprefix("www.")
        parts = [part for part in match[2].rstrip(".,;:/").split("/") if part]
        depth = HOSTS.get(host, 0)
        if depth and len(parts) >= depth:
            found.setdefault("/".join([host, *parts[:depth]]).removesuffix(".git"), match.start())
    return list(found.items())


def official(text: str, given: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """(the paper's own projects, others that it mentions). `given` are those that its metadata names.

    A link is the paper's own if a word near it says so, or if it is the only one there is.
    """
    found = projects(text)
    own = [project for link in given for project, _ in projects(f"https://{link.removeprefix('https://')}")]
    for project, at in found:
        near = text[max(0, at - NEAR) : at + NEAR]
        if project not in own and (len(found) == 1 or _OWN.search(near)):
            own.append(project)
    return own, [project for project, _ in found if project not in own]


def blacklist(own: Iterable[str]) -> str:
    """PaperBench's blacklist.txt: a URL a line; "none" where there is nothing to forbid."""
    lines = [f"https://{project}" for project in own]
    return "\n".join(lines or ["none"]) + "\n"
