"""The rules of the scaffold, for a policy and for a teacher alike: when `submit` is taken, what was read, what progress
is reported. KLong's scaffold (arXiv 2602.17547): the paper must be read, and a task isn't given up early. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from klong_rl.config import RulesConfig
from klong_rl.types import Task

SUBMIT = "submit"
LEAST_LINE = 12  # characters of a line that counts as read when it was shown: shorter ones stand in any text
_PROGRESS = re.compile(r"^\s*#?\s*progress:?\s+(\d{1,3})\s*%[\s:-]*(.*)$", re.IGNORECASE | re.MULTILINE)


class Read(NamedTuple):
    """Share of a file's lines that were shown, and the first, from 1, that was not (0: none)."""

    share: float
    first_unread: int


class Report(NamedTuple):
    percent: int
    note: str


def reading(task: Task) -> dict[str, str]:
    """The texts that the task asks to be read, by path."""
    return {path: task.files[path].decode(errors="replace") for path in task.reading if path in task.files}


def read_so_far(text: str, shown: Iterable[str]) -> Read:
    r"""How much of `text` stood in what the agent was shown, line by line.

    >>> read_so_far("the first line\nthe second line\n", ["$ head\nthe first line\n"])
    Read(share=0.5, first_unread=2)
    """
    seen = {line.strip() for each in shown for line in each.splitlines()}
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    counted = [(number, line) for number, line in lines if len(line) >= LEAST_LINE]
    unread = [number for number, line in counted if line not in seen]
    share = 1 - len(unread) / len(counted) if counted else 1.0
    return Read(share, unread[0] if unread else 0)


def refusal(rules: RulesConfig, texts: Mapping[str, str], shown: Iterable[str], used_share: float) -> str:
    """Why `submit` is not taken yet, as the agent reads it; "" if it is. `used_share` is of the episode's time."""
    if used_share < rules.submit_after:
        return (
            f"[not submitted: {used_share:.0%} of the time is used, and at least {rules.submit_after:.0%} must be; "
            "go on improving the work]"
        )
    shown = list(shown)
    for path, text in texts.items() if rules.read_first > 0 else ():
        read = read_so_far(text, shown)
        if read.share < rules.read_first:
            return (
                f"[not submitted: {read.share:.0%} of {path} was read, and at least {rules.read_first:.0%} must be; "
                f"go on at line {read.first_unread}]"
            )
    return ""


def reports(command: str) -> list[Report]:
    """What an action says of its progress: lines such as `# progress 40%: the loader works`.

    >>> reports("make all  \\n# progress 40%: the loader works")
    [Report(percent=40, note='the loader works')]
    """
    return [Report(min(100, int(percent)), note.strip()) for percent, note in _PROGRESS.findall(command)]
