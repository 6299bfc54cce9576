"""papers: reproduce a research paper from scratch. Folders in PaperBench's format, the factory's or PaperBench's own.

    DIR/NAME/  config.yaml (id, title)  paper.md  addendum.md  blacklist.txt  rubric.json  assets/  judge.addendum.md

In the sandbox: paper/ with paper.md, addendum.md, blacklist.txt and assets; the agent's work goes to submission/. The
judge reads submission/ alone, by rubric.json. Source of the format: openai/frontier-evals, project/paperbench.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from klong_rl.errors import UserError
from klong_rl.judging.rubric import RubricError, load
from klong_rl.judging.submission import PLACEHOLDER
from klong_rl.tasks.split import picked, split
from klong_rl.types import Limits, Network, Task

SUBMISSION = "submission"  # below the working directory
READING = ("paper/paper.md", "paper/addendum.md")
MOST_ASSET_BYTES = 20_000_000  # of one task: it travels with each episode

INSTRUCTION = """The folder paper/ has a research paper, paper.md, with its figures under assets/, and addendum.md says
more. Reproduce the paper's contributions from scratch in the folder submission/. Write all the code that is
needed, and a script reproduce.sh that runs it and produces the results; run it and leave its output in
reproduce.log, beside it. You may not use the paper's own code: nothing that paper/blacklist.txt names. You
are graded on what is in submission/ by a rubric on each contribution of the paper: partial work counts. Type
submit when you are done."""


@dataclass(frozen=True)
class PaperTasks:
    """The tasks of `path`, all of difficulty 1, in an order that `seed` picks.

    For `held_out_names` and `held_out_share` see klong_rl.tasks.split; `make recipe` holds out none.
    `network`: hosts that a sandbox may reach; what a task's blacklist names stays out of reach.
    """

    path: str
    image: str = "klong-sandbox"
    seed: int = 0
    instruction: str = INSTRUCTION
    held_out_names: Sequence[str] = ()
    held_out_share: float = 0.2
    limits: Mapping[str, Any] = field(default_factory=dict)
    network: Sequence[str] = ()

    def train(self, difficulty: int, index: int) -> Task:
        return self._tasks[picked(self._split[0], "papers", self.seed, difficulty, index)]

    def held_out(self, difficulty: int, index: int) -> Task:
        return self._tasks[picked(self._split[1], "papers", self.seed, difficulty, index)]

    @property
    def all(self) -> list[Task]:
        """Every task once, by name: what is distilled from."""
        return [self._tasks[name] for name in sorted(self._tasks)]

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        folders = sorted(p.parent for p in Path(self.path).glob("*/rubric.json")) if self.path else []
        if not folders:
            raise UserError(f"tasks.path={self.path} has no task: a folder with rubric.json for each is wanted")
        return {folder.name: self._task(folder) for folder in folders}

    @cached_property
    def _split(self) -> tuple[list[str], list[str]]:
        return split(list(self._tasks), self.path, self.held_out_names, self.held_out_share)

    def _task(self, folder: Path) -> Task:
        limits = Limits(**{**self.limits, **self._way_out(folder)})
        return load_task(folder, image=self.image, instruction=self.instruction, limits=limits)

    def _way_out(self, folder: Path) -> dict[str, Any]:
        if not self.network:
            return {}
        lines = (folder / "blacklist.txt").read_text().split() if (folder / "blacklist.txt").exists() else []
        return {"network": Network(allow=tuple(self.network), block=tuple(each for each in lines if each != "none"))}


def load_task(folder: Path, *, image: str, instruction: str, limits: Limits) -> Task:
    """The task of one folder. Raises UserError, one line, for one that can't be used."""
    files = {f"paper/{name}": path.read_bytes() for name in ("paper.md", "addendum.md", "blacklist.txt")
             if (path := folder / name).is_file()}  # fmt: skip
    if "paper/paper.md" not in files:
        raise UserError(f"{folder} has no paper.md; make it again, or remove it")
    assets = [path for path in sorted((folder / "assets").rglob("*")) if path.is_file()]
    size = sum(path.stat().st_size for path in assets)
    if size > MOST_ASSET_BYTES:
        raise UserError(f"{folder}/assets has {size} bytes, {MOST_ASSET_BYTES} at most; shrink the pictures")
    files |= {f"paper/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in assets}
    files[f"{SUBMISSION}/{PLACEHOLDER}"] = b""
    try:
        load((folder / "rubric.json").read_bytes())
    except (OSError, RubricError) as error:
        raise UserError(f"{folder}/rubric.json can't be used: {error}") from error
    about = [files["paper/paper.md"].decode(errors="replace")]
    about += [path.read_text(errors="replace") for path in (folder / "addendum.md", folder / "judge.addendum.md")
              if path.is_file()]  # fmt: skip
    secret = {"rubric": str((folder / "rubric.json").absolute()), "paper": "\n\n".join(about), "folder": SUBMISSION}
    return Task(
        id=f"papers/{folder.name}",
        family="papers",
        instruction=instruction,
        image=image,
        files=files,
        secret=secret | {"title": title(folder)},
        limits=limits,
        reading=tuple(name for name in READING if name in files),
    )


def title(folder: Path) -> str:
    """As config.yaml has it, else the folder's name. Raises UserError."""
    path = folder / "config.yaml"
    if not path.is_file():
        return folder.name
    try:
        return str(OmegaConf.to_container(OmegaConf.load(path)).get("title", folder.name))
    except (OmegaConfBaseException, YAMLError, AttributeError) as error:
        raise UserError(f"{path} is no mapping in YAML: {error}") from error


@dataclass(frozen=True)
class ScriptedReproduction:
    """The teacher by script: it reads the paper, writes the files of its code, which are under `papers`/NAME/code, runs
    them and submits. With probability `forgets` a file is not written, so that some attempts are better than others.

    The code's files are text.
    """

    papers: str
    forgets: float = 0.25

    def demonstrate(self, task: Task, rng: random.Random) -> list[tuple[str, str]]:
        """(command, "") for each turn: what it prints is the sandbox's to say."""
        name = task.id.removeprefix("papers/")
        code = Path(self.papers, name, "code")
        paths = [path for path in sorted(code.rglob("*")) if path.is_file()]
        if not paths:
            raise UserError(f"teacher.demonstrator.papers={self.papers} has no {name}/code to show {task.id} by")
        commands = ["cat paper/paper.md", f"cd {SUBMISSION}"]
        for path in paths:
            if path.name == "reproduce.sh" or rng.random() >= self.forgets:
                commands += written(path.relative_to(code).as_posix(), path.read_text())
        return [
            (command, "") for command in [*commands, "sh reproduce.sh > reproduce.log", "cat reproduce.log", "submit"]
        ]


def written(path: str, text: str) -> list[str]:
    """Commands that write a file, one a line of it."""
    quoted = ["'" + line.replace("'", "'\\''") + "'" for line in text.splitlines()]
    return [f"printf '%s\\n' {line} {'>>' if number else '>'} {path}" for number, line in enumerate(quoted)]
