"""What a Dockerfile takes out of its folder, and whether it is there: a build that can't succeed is told beforehand.

Docker's own parser is the judge of everything else. Pure but for looking at files.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

_CONTINUED = re.compile(r"\\[ \t]*\n(?:[ \t]*#[^\n]*\n)*")
_COPY = re.compile(r"^[ \t]*(?:COPY|ADD)[ \t]+(.+)$", re.IGNORECASE | re.MULTILINE)


def sources(text: str) -> list[str]:
    r"""What COPY and ADD name in the folder of the build, but not what only Docker knows: a variable, a stage, a URL.

    >>> sources("FROM a\nCOPY x y /z/\nCOPY --chown=a:b \\\n  [\"p q\", \"/r\"]\nCOPY --from=b /x /x")
    ['x', 'y', 'p q']
    """
    found: list[str] = []
    for line in _COPY.findall(_CONTINUED.sub(" ", text)):
        words = _words(line)
        flags = [word for word in words if word.startswith("--")]
        paths = [word for word in words if not word.startswith("--")][:-1]
        if any(flag.startswith("--from") for flag in flags) or any(path.startswith("<<") for path in paths):
            continue
        found += [path for path in paths if "$" not in path and "://" not in path]
    return found


def _words(line: str) -> list[str]:
    flags = re.match(r"(?:--\S+\s+)*", line)[0]
    rest = line[len(flags) :]
    try:
        if rest.startswith("["):
            return [*flags.split(), *json.loads(rest)]
        return [*flags.split(), *shlex.split(rest)]
    except ValueError:  # Docker will say what is wrong with it
        return []


def missing(folder: Path) -> list[str]:
    """The sources that aren't in the folder of the Dockerfile, in their order."""
    text = (folder / "Dockerfile").read_text(errors="replace")
    return [each for each in dict.fromkeys(sources(text)) if not _is_there(folder, each)]


def _is_there(folder: Path, source: str) -> bool:
    relative = source.lstrip("/").removeprefix("./")
    if not relative or (folder / relative).exists() or (folder / relative).is_symlink():
        return True
    return any(letter in relative for letter in "*?[") and any(folder.glob(relative))
