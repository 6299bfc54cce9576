"""A suite: which tasks of a family are attempted, under which headings, and what is left in a benchmark's format."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from klong_rl.evaluation.results import Episode
from klong_rl.judging.store import Store, write_whole
from klong_rl.types import Task


class Entry(NamedTuple):
    """A task, and the part of the suite it counts in."""

    part: str
    task: Task


class Suite(Protocol):
    """Named by `suite._target_`; `family` is what `tasks` names."""

    name: str

    def entries(self, family: Any) -> list[Entry]:
        """The tasks to attempt, each once."""

    def refused(self, family: Any) -> Mapping[str, str]:
        """Why each task that can't be used can't be, by its name."""

    def write(self, out: Path, entries: Sequence[Entry], episodes: Sequence[Episode]) -> list[Path]:
        """Files in the benchmark's own format, from all episodes so far."""


@dataclass(frozen=True)
class HeldOut:
    """`count` held-out tasks of each difficulty of a family: those that training never sees."""

    name: str
    difficulties: Sequence[int] = (1,)
    count: int = 16

    def entries(self, family: Any) -> list[Entry]:
        found: dict[str, Entry] = {}
        for difficulty in self.difficulties:
            for index in range(self.count):
                task = family.held_out(difficulty, index)
                found.setdefault(task.id, Entry(f"difficulty {difficulty}", task))
        return list(found.values())

    def refused(self, family: Any) -> Mapping[str, str]:
        return {}

    def write(self, out: Path, entries: Sequence[Entry], episodes: Sequence[Episode]) -> list[Path]:
        return []


@dataclass(frozen=True)
class AllTasks:
    """Every task of a family that can list them (`all`), by the heading in its secret, `part`, if it has one."""

    name: str

    def entries(self, family: Any) -> list[Entry]:
        return [Entry(str(task.secret.get("part", self.name)), task) for task in family.all]

    def refused(self, family: Any) -> Mapping[str, str]:
        return getattr(family, "refused", {})

    def write(self, out: Path, entries: Sequence[Entry], episodes: Sequence[Episode]) -> list[Path]:
        return []


@dataclass(frozen=True)
class SweBench(AllTasks):
    """And predictions.jsonl, which the official harness takes, one for each repeat. `model` is what it calls us."""

    model: str = "klong_rl"

    def write(self, out: Path, entries: Sequence[Entry], episodes: Sequence[Episode]) -> list[Path]:
        store, by_sample = Store(out), {}
        for each in episodes:
            if each.score is not None and (kept := each.evidence.get("model_patch")):
                row = {
                    "instance_id": each.task.removeprefix("swebench/"),
                    "model_name_or_path": self.model,
                    "model_patch": store.text(kept),
                }
                by_sample.setdefault(each.sample, []).append(json.dumps(row) + "\n")
        written = []
        for sample, rows in sorted(by_sample.items()):
            written.append(out / (f"predictions-{sample}.jsonl" if sample else "predictions.jsonl"))
            write_whole(written[-1], "".join(rows).encode())
        return written


@dataclass(frozen=True)
class PaperBench(AllTasks):
    """And paperbench/EPISODE.json, what PaperBench's own judge writes of a submission. `judge` is the model's name."""

    judge: str = ""

    def write(self, out: Path, entries: Sequence[Entry], episodes: Sequence[Episode]) -> list[Path]:
        folder, store, written = out / "paperbench", Store(out), False
        for each in episodes:
            if each.score is not None and (kept := each.evidence.get("graded_task_tree")):
                output = judge_output(json.loads(store.text(kept)), self.judge, each)
                write_whole(folder / f"{each.id}.json", json.dumps(output, indent=1).encode())
                written = True
        return [folder] if written else []


def judge_output(tree: Mapping[str, Any], model: str, episode: Episode) -> dict[str, Any]:
    """PaperBench's JudgeOutput of a graded tree."""
    leaves, waiting = 0, [tree]
    while waiting:
        node = waiting.pop()
        leaves += not node["sub_tasks"]
        waiting += node["sub_tasks"]
    usage = {"in": episode.usage.prompt_tokens, "out": episode.usage.completion_tokens}
    return {
        "judge_type": "klong_rl",
        "model_name": model,
        "score": tree["score"],
        "num_leaf_nodes": leaves,
        "num_invalid_leaf_nodes": 0,  # one is enough for no verdict
        "graded_at": time.strftime("%Y-%m-%d-%H-%M-%S-%Z"),
        "graded_task_tree": tree,
        "token_usage": {model: usage},
    }
