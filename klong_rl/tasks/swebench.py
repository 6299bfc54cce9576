"""swebench: issues of real repositories, rows in the format of SWE-bench Verified as package swebench 5 reads them.

    {"instance_id", "repo", "version", "base_commit", "problem_statement", "image", "eval_script", "log_parser",
     "eval_type", "FAIL_TO_PASS", "PASS_TO_PASS", "patch"}      a line each, in JSON

The agent works as root in /testbed of the instance's own image. What it changed is a patch, which
klong_rl.rewards.swebench puts to the instance's tests. Of the row only the problem statement reaches the agent.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from klong_rl.errors import UserError
from klong_rl.failures import TaskFailure
from klong_rl.tasks.split import picked, split
from klong_rl.types import Limits, Task

NEEDED = (
    "instance_id", "repo", "version", "base_commit", "problem_statement", "image", "eval_script", "log_parser",
    "eval_type", "FAIL_TO_PASS", "PASS_TO_PASS",
)  # fmt: skip
TESTBED = "/testbed"
INSTRUCTION = """The folder /testbed has the repository {repo}. Resolve the issue below by changing its source files,
not its tests; hidden tests decide. Type submit when you are done.

{problem}"""
LIMITS = Limits(
    memory_mb=8192, cpus=2.0, pids=2048, disk_mb=20480, open_files=4096, read_only=(), user="root", workdir=TESTBED
)


@dataclass(frozen=True)
class SweBenchTasks:
    """The instances of the JSONL file `path`, all of difficulty 1, in an order `seed` picks.

    `limits` override LIMITS. For `held_out_names` and `held_out_share` see klong_rl.tasks.split.
    """

    path: str
    seed: int = 0
    limits: Mapping[str, Any] = field(default_factory=dict)
    held_out_names: Sequence[str] = ()
    held_out_share: float = 0.2

    def train(self, difficulty: int, index: int) -> Task:
        return self._loaded[0][picked(self._split[0], "swebench", self.seed, difficulty, index)]

    def held_out(self, difficulty: int, index: int) -> Task:
        return self._loaded[0][picked(self._split[1], "swebench", self.seed, difficulty, index)]

    @property
    def all(self) -> list[Task]:
        """Every instance that can be used once, as the file has them."""
        return list(self._loaded[0].values())

    @property
    def refused(self) -> dict[str, str]:
        """Why each of the others can't be, by its id."""
        return self._loaded[1]

    @cached_property
    def _split(self) -> tuple[list[str], list[str]]:
        return split(list(self._loaded[0]), self.path, self.held_out_names, self.held_out_share)

    @cached_property
    def _loaded(self) -> tuple[dict[str, Task], dict[str, str]]:
        tasks, refused = {}, {}
        for number, row in _rows(self.path):
            name = str(row.get("instance_id") or f"line {number}")
            if missing := [key for key in NEEDED if not row.get(key) and key != "PASS_TO_PASS"]:
                refused[name] = f"it lacks fields that swebench 5 needs: {', '.join(missing)}"
            else:
                tasks[name] = _task(row, self.limits)
        return tasks, refused


def _rows(path: str) -> list[tuple[int, dict[str, Any]]]:
    """(line from 1, row). Raises UserError."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tasks.path={path} is no JSONL file of instances that can be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                found.append((number, {**row}))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number} is no JSON object: {error}") from error
    return found


def _task(row: Mapping[str, Any], limits: Mapping[str, Any]) -> Task:
    fields = {name: getattr(LIMITS, name) for name in LIMITS.__struct_fields__}
    hidden = {key: row.get(key) for key in (*NEEDED, "image_assets") if key != "problem_statement"}
    return Task(
        id=f"swebench/{row['instance_id']}",
        family="swebench",
        instruction=INSTRUCTION.format(repo=row["repo"], problem=row["problem_statement"]),
        image=str(row["image"]),
        limits=Limits(**fields | dict(limits)),
        secret={"instance": hidden, "patch": str(row.get("patch") or ""), "part": str(row["repo"])},
    )


@dataclass(frozen=True)
class GoldPatch:
    """The policy by script: the instance's own patch; with `empty` none."""

    empty: bool = False

    def demonstrate(self, task: Task, rng: random.Random) -> list[tuple[str, str]]:
        """(command, "") for each turn. Raises TaskFailure."""
        if self.empty:
            return [("submit", "")]
        if not task.secret["patch"]:
            raise TaskFailure(f"{task.id} has no patch in its row: there is no reference to show it by")
        patch = base64.encodebytes(task.secret["patch"].encode()).decode()
        return [(f"base64 -d <<'END' | git apply -\n{patch}END\n", ""), ("submit", "")]
