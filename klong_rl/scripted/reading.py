"""What a scripted model reads in a prompt: files between markers, terms in backquotes, rows of tables."""

from __future__ import annotations

import ast
import re

_FILE = re.compile(r"<([0-9a-f]{12}) file=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")>\n(.*?)\n</\1>", re.DOTALL)
_TERM = re.compile(r"`([^`\n]+)`")


def files(prompt: str) -> dict[str, str]:
    """Text by path, of files shown as klong_rl.judging.prompts shows them."""
    return {ast.literal_eval(name): text for _, name, text in _FILE.findall(prompt)}


def terms(text: str) -> list[str]:
    """What stands in backquotes, in order."""
    return _TERM.findall(text)


def table_rows(markdown: str) -> list[list[str]]:
    """The cells of each row of the first table with a number in it, its head left out.

    >>> table_rows("| a | b |\\n| --- | --- |\\n| x | 2 |\\n")
    [['x', '2']]
    """
    tables: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if not line.lstrip().startswith("|"):
            tables.append([])
            continue
        tables[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
    for table in tables:
        rows = [row for row in table[1:] if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
        if any(re.search(r"\d", cell) for row in rows for cell in row):
            return rows
    return []
