"""What a task family gives: tasks by index, a held-out set, and (where it has one) a scripted demonstrator."""

from __future__ import annotations

import random
from typing import Protocol

from klong_rl.types import Task


class TaskFamily(Protocol):
    """A source of tasks. The same arguments give the same task anywhere, so a restart can't change the schedule."""

    def train(self, difficulty: int, index: int) -> Task:
        """The `index`-th training task of that difficulty."""

    def held_out(self, difficulty: int, index: int) -> Task:
        """The `index`-th evaluation task of that difficulty: never one that `train` gives."""


class Demonstrator(Protocol):
    """Solves tasks of one family by script: the cold start's teacher."""

    def demonstrate(self, task: Task, rng: random.Random) -> list[tuple[str, str]]:
        """(command, output it would print) for each turn; the last command is `submit`, with no output."""
