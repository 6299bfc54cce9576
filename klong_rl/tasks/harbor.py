"""harbor: tasks in the folder format of Harbor and Terminal-Bench 2, as they are.

    DIR/NAME/  task.toml  instruction.md  environment/Dockerfile  tests/test.sh  [solution/solve.sh]

The agent works as the image's own user (root, mostly) in the image's own directory. After it, tests/ is put at /tests
and test.sh is run there (klong_rl.rewards.harbor). Source of the format: harborframework.com, package harbor 0.26.0.
"""

from __future__ import annotations

import base64
import io
import random
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from klong_rl.errors import UserError
from klong_rl.failures import TaskFailure
from klong_rl.tasks.dockerfile import missing
from klong_rl.tasks.split import picked, split
from klong_rl.types import Limits, Network, Task

TOML, INSTRUCTION, DOCKERFILE, TEST, SOLVE = (
    "task.toml",
    "instruction.md",
    "environment/Dockerfile",
    "tests/test.sh",
    "solution/solve.sh",
)
COMPOSE = "environment/docker-compose.yaml"
AGENT_S, VERIFIER_S = 3600.0, 600.0  # where task.toml says nothing; the second is Harbor's own
MEMORY_MB, CPUS, STORAGE_MB = 2048, 1.0, 10240
PIDS, OPEN_FILES = 1024, 4096
AS_THE_TASK_SAYS = "task"


class Refusal(Exception):
    """Why a folder can't be used as a task here: the reason, in the same words for each, and after a colon what."""


@dataclass(frozen=True)
class HarborTasks:
    """The tasks of `path`: a folder of task folders, or one of them. All of difficulty 1, in an order `seed` picks.

    `network` is `task`, what each task.toml says, or the hosts that all may reach; `limits` override the tasks' own.
    For `held_out_names` and `held_out_share` see klong_rl.tasks.split. What can't be used is in `refused`.
    """

    path: str
    seed: int = 0
    network: Any = AS_THE_TASK_SAYS
    limits: Mapping[str, Any] = field(default_factory=dict)
    held_out_names: Sequence[str] = ()
    held_out_share: float = 0.2

    def train(self, difficulty: int, index: int) -> Task:
        return self._tasks[picked(self._split[0], "harbor", self.seed, difficulty, index)]

    def held_out(self, difficulty: int, index: int) -> Task:
        return self._tasks[picked(self._split[1], "harbor", self.seed, difficulty, index)]

    @property
    def all(self) -> list[Task]:
        """Every task that can be used once, by name."""
        return list(self._tasks.values())

    @property
    def refused(self) -> dict[str, str]:
        """Why each of the others can't be, by name."""
        return self._loaded[1]

    @property
    def _tasks(self) -> dict[str, Task]:
        return self._loaded[0]

    @cached_property
    def _split(self) -> tuple[list[str], list[str]]:
        if not self._tasks:
            why = "; ".join(f"{name}: {each}" for name, each in list(self.refused.items())[:1])
            raise UserError(f"tasks.path={self.path} has no task that can be used ({why or 'no folder in it'})")
        return split(list(self._tasks), self.path, self.held_out_names, self.held_out_share)

    @cached_property
    def _loaded(self) -> tuple[dict[str, Task], dict[str, str]]:
        root = Path(self.path).absolute()
        if not self.path or not root.is_dir():
            raise UserError(f"tasks.path={self.path} is no folder; name one with a folder for each task")
        folders = [root] if (root / TOML).is_file() else sorted(each for each in root.iterdir() if each.is_dir())
        tasks, refused = {}, {}
        for folder in folders:
            try:
                tasks[folder.name] = load_task(folder, self.network, self.limits)
            except Refusal as why:
                refused[folder.name] = str(why)
        return tasks, refused


def load_task(folder: Path, network: Any = AS_THE_TASK_SAYS, limits: Mapping[str, Any] | None = None) -> Task:
    """The task of one folder. Raises Refusal."""
    settings = _settings(folder)
    environment, verifier = _table(settings, "environment"), _table(settings, "verifier")
    agent, metadata = _table(settings, "agent"), _table(settings, "metadata")
    _refuse_what_is_not_done(settings, environment, verifier, agent)
    instruction = _text(folder, INSTRUCTION)
    if not (folder / TEST).is_file():
        raise Refusal(f"no {TEST}")
    has_solution = (folder / SOLVE).is_file()
    return Task(
        id=f"harbor/{folder.name}",
        family="harbor",
        instruction=instruction,
        image=_image(folder, environment),
        limits=_limits(environment, network, limits or {}),
        secret={
            "tests": str(folder / "tests"),
            "verifier_s": _number(verifier, "timeout_sec", VERIFIER_S),
            "verifier_env": _plain_texts(verifier.get("env", {}), "verifier.env"),
            "solution": str(folder / "solution") if has_solution else "",
            "solution_env": _plain_texts(_table(settings, "solution").get("env", {}), "solution.env"),
            "part": str(metadata.get("difficulty") or "harbor"),
        },
        timeout_s=_number(agent, "timeout_sec", AGENT_S),
    )


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(folder, TOML))
    except tomllib.TOMLDecodeError as error:
        raise Refusal(f"{TOML} is no TOML: {error}") from error


def _text(folder: Path, name: str) -> str:
    try:
        text = (folder / name).read_text()
    except OSError:
        raise Refusal(f"no {name}") from None
    except UnicodeDecodeError as error:
        raise Refusal(f"{name} is no UTF-8") from error
    if not text.strip():
        raise Refusal(f"{name} is empty")
    return text


def _refuse_what_is_not_done(
    settings: Mapping[str, Any], environment: Mapping[str, Any], verifier: Mapping[str, Any], agent: Mapping[str, Any]
) -> None:
    wants = {
        "several steps": settings.get("steps"),
        "a GPU": environment.get("gpus"),
        "a TPU": environment.get("tpu"),
        "another system than Linux": str(environment.get("os", "linux")).lower() != "linux",
        "MCP servers": environment.get("mcp_servers"),
        "a health check": environment.get("healthcheck"),
        "variables in the agent's environment": environment.get("env"),
        "a verifier in a container of its own": verifier.get("environment")
        or verifier.get("environment_mode", "shared") != "shared",
        "commands after the agent's work (verifier.collect)": verifier.get("collect"),
        "users of its own": verifier.get("user") or agent.get("user"),
        "another network for the agent or the verifier": agent.get("network_mode") or verifier.get("network_mode"),
    }
    for name, value in wants.items():
        if value:
            raise Refusal(f"it wants {name}, which isn't supported")


def _image(folder: Path, environment: Mapping[str, Any]) -> str:
    if (folder / COMPOSE).exists():
        raise Refusal("it wants several containers (docker-compose), which isn't supported")
    if (folder / DOCKERFILE).is_file():
        if absent := missing(folder / "environment"):
            raise Refusal(f"its Dockerfile copies what isn't in environment/: {', '.join(absent)}")
        return f"dockerfile:{folder / 'environment'}"
    if environment.get("docker_image"):
        return str(environment["docker_image"])
    raise Refusal(f"no {DOCKERFILE}, and no environment.docker_image")


def _limits(environment: Mapping[str, Any], network: Any, override: Mapping[str, Any]) -> Limits:
    found = {
        "memory_mb": _megabytes(environment, "memory", MEMORY_MB),
        "disk_mb": _megabytes(environment, "storage", STORAGE_MB),
        "cpus": _number(environment, "cpus", CPUS),
        "pids": PIDS,
        "open_files": OPEN_FILES,
        "read_only": (),
        "network": _network(environment, network),
        "user": "",
        "workdir": str(environment.get("workdir") or ""),
    }
    return Limits(**found | dict(override))


def _network(environment: Mapping[str, Any], network: Any) -> Network | None:
    if network != AS_THE_TASK_SAYS:
        hosts = tuple(network or ())
    elif "network_mode" in environment:
        mode, hosts = environment["network_mode"], tuple(environment.get("allowed_hosts") or ())
        if mode not in ("public", "no-network", "allowlist"):
            raise Refusal(f"environment.network_mode={mode} is unknown")
        hosts = {"public": ("*",), "no-network": (), "allowlist": hosts}[mode]
    else:
        hosts = ("*",) if environment.get("allow_internet", True) else ()
    return Network(allow=hosts) if hosts else None


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name, {})
    if not isinstance(found, dict):
        raise Refusal(f"{name} in {TOML} is no table")
    return found


def _number(table: Mapping[str, Any], name: str, default: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise Refusal(f"{name}={value!r} in {TOML} is no number above 0")
    return float(value)


def _megabytes(table: Mapping[str, Any], name: str, default: int) -> int:
    """`memory_mb = 2048`, or as it was: `memory = "2G"`."""
    old = table.get(name)
    if f"{name}_mb" in table or old is None:
        return int(_number(table, f"{name}_mb", default))
    scale = {"G": 1024.0, "M": 1.0, "K": 1 / 1024}.get(str(old)[-1:].upper())
    try:
        return max(1, int(float(str(old)[:-1]) * scale))
    except (TypeError, ValueError):
        raise Refusal(f"{name}={old!r} in {TOML} is no size such as 2G") from None


def _plain_texts(values: Any, name: str) -> dict[str, str]:
    """Variables; one that is to be filled in from the host's would carry its secrets into the sandbox."""
    if not isinstance(values, dict):
        raise Refusal(f"{name} in {TOML} is no table")
    if any("${" in str(value) for value in values.values()):
        raise Refusal(f"{name} asks for variables of the host")
    return {str(key): str(value) for key, value in values.items()}


def packed(folder: Path) -> bytes:
    """A tar file of what is in the folder: times and owners left out, so that it is the same anywhere. Blocking."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=plain)
    return buffer.getvalue()


@dataclass(frozen=True)
class ReferenceSolution:
    """The policy by script: what solution/solve.sh does, as Harbor's oracle; with `empty` nothing at all."""

    empty: bool = False

    def demonstrate(self, task: Task, rng: random.Random) -> list[tuple[str, str]]:
        """(command, "") for each turn: what it prints is the sandbox's to say. Raises TaskFailure."""
        if self.empty:
            return [("submit", "")]
        if not task.secret["solution"]:
            raise TaskFailure(f"{task.id} has no {SOLVE}: there is no reference to show it by")
        archive = base64.encodebytes(packed(Path(task.secret["solution"]))).decode()
        variables = {"DEBIAN_FRONTEND": "noninteractive"} | task.secret["solution_env"]
        exports = "".join(f"export {name}={quoted(value)}\n" for name, value in variables.items())
        put = f"mkdir -p /solution && base64 -d <<'END' | tar -xf - -C /solution\n{archive}END\n"
        return [(f"{put}chmod +x /solution/solve.sh\n{exports}/solution/solve.sh", ""), ("submit", "")]


def quoted(text: str) -> str:
    """As one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
