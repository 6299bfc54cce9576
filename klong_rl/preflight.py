"""What is looked at before anything starts, so that a run fails in its first second and not in its first hour.

Each check raises UserError: one line with the thing, its value and the remedy. None of them starts or mends anything.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from klong_rl.chat import ChatFormat
from klong_rl.config import RunConfig
from klong_rl.errors import UserError
from klong_rl.tasks.base import TaskFamily

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"

# What a resumed run must share with the run it resumes, as dotted prefixes: what decides which tokens were sampled, how
# they are scored and what is learned from them. All else (engines, actors, machines) may change between launches.
MATTERS = (
    "seed",
    "model",
    "tasks",
    "reward",
    "judge.endpoint.model",
    "judge.endpoint.temperature",
    "cold_start",
    "window",
    "agent.system",
    "agent.action_tokens",
    "agent.observation_tokens",
    "agent.temperature",
    "agent.rules",
    "agent.program",
    "learner.objective",
    "learner.objective_options",
    "learner.advantage",
    "learner.optimizer",
    "rollout.group_size",
    "curriculum",
)
ABSENT = "(absent)"


def check_writable(folder: Path) -> None:
    """Make `folder` if need be, and write a file there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}; set root= to a directory of yours") from error


def check_free_disk(folder: Path, need_mb: int) -> None:
    """`folder` exists. MB are 10^6 bytes."""
    free_mb = shutil.disk_usage(folder).free // 10**6
    if free_mb < need_mb:
        raise UserError(
            f"{folder} has {free_mb} MB free, {need_mb} MB are needed; free some, set root= to another disk, "
            "or lower min_free_disk_mb"
        )


def check_redis_server() -> str:
    """The path of redis-server, for a run that starts its own."""
    path = shutil.which("redis-server")
    if path is None:
        raise UserError("redis-server is not on the PATH; run `make setup`, or set buffer.url= to a Redis that runs")
    return path


def check_model_folder(folder: Path) -> None:
    """A Hugging Face folder: config, tokenizer and all the safetensors it names."""
    if not folder.is_dir():
        raise UserError(f"model folder {folder} doesn't exist; give the path of a Hugging Face folder")
    missing = _missing_model_files(folder)
    if missing:
        raise UserError(f"model folder {folder} lacks {', '.join(missing)}; download or convert it again")


def _missing_model_files(folder: Path) -> list[str]:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return missing + [shard for shard in shards if not (folder / shard).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    return missing


def check_prompts(config: RunConfig, family: TaskFamily, chat: ChatFormat) -> None:
    """Refuse a window in which the prompt of a task of a stage's difficulties leaves no room for an action.

    An agent program makes its own prompts; one that is too long is told so when it asks.
    """
    if config.agent.program:
        return
    action = config.agent.action_tokens
    difficulties = [(n, each) for n, s in enumerate(config.curriculum.stages, 1) for each in (s.difficulty, *s.mix)]
    for number, difficulty in difficulties:
        task = family.train(difficulty, 0)
        prompt = len(chat.prefix(config.agent.system, task.instruction))
        if prompt + action > config.window.max_tokens:
            raise UserError(
                f"window.max_tokens={config.window.max_tokens} is too short for stage {number}: the prompt of task "
                f"{task.id} takes {prompt} tokens of this model, and an action up to agent.action_tokens={action}"
            )


def check_same_configuration(
    run_dir: Path, config: Mapping[str, Any], keys: Sequence[str] = MATTERS, another: str = "name="
) -> None:
    """Refuse another configuration than the run directory was started with, by naming the first difference.

    `another`: what a user sets to have another directory.
    """
    path = run_dir / CONFIG_FILE
    if not path.exists():
        return
    config = json.loads(json.dumps(config))  # as it is read back: tuples are lists
    difference = first_difference(json.loads(path.read_text()), config, keys)
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"{run_dir} was started with {key}={before}, this launch has {key}={now}; set it back to resume that run, "
            f"or set {another} to start another"
        )


def save_configuration(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Bind the run directory to `config`, once it is known to work. `buffer.url` may hold a password: for its owner."""
    path = run_dir / CONFIG_FILE
    partial = path.with_suffix(".json.new")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, path)


def first_difference(before: Any, now: Any, keys: Sequence[str]) -> tuple[str, Any, Any] | None:
    """The first dotted key, of those equal to or under one of `keys`, whose values differ; with both values."""
    flat_before, flat_now = dict(_flatten(before)), dict(_flatten(now))
    for key in {**flat_before, **flat_now}:
        if not any(key == prefix or key.startswith(prefix + ".") for prefix in keys):
            continue
        values = flat_before.get(key, ABSENT), flat_now.get(key, ABSENT)
        if values[0] != values[1]:
            return key, *values
    return None


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key, list items by their number. What is empty has no leaf, so it equals what is absent."""
    if not isinstance(node, dict | list):
        yield prefix, node
        return
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _flatten(child, f"{prefix}.{key}" if prefix else str(key))


@contextmanager
def locked(run_dir: Path, another: str = "name=") -> Iterator[None]:
    """Hold the run directory for this process; UserError names the process that holds it, and the setting by which to
    have `another`.

    The lock is the kernel's: it ends with the process, however that ends. Programs started meanwhile don't inherit it.
    """
    with open(run_dir / LOCK_FILE, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{run_dir} is in use by {holder}; wait for it or stop it, or set {another} to start another run"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
