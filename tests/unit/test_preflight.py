"""Each check passes what is right and refuses what is wrong in one line that says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from klong_rl import preflight
from klong_rl.config import AgentConfig, CurriculumConfig, RunConfig, StageConfig, WindowConfig
from klong_rl.errors import UserError
from klong_rl.tasks.relay import RelayTasks
from klong_rl.types import Task

CONFIG = {
    "seed": 0,
    "model": {"name": "nano", "source": {}},
    "curriculum": [{"timeout_s": 20.0, "steps": 8}],
    "actors": {"count": 1},
    "learner": {"objective": "klong", "objective_options": {}},
}


def refused(*parts):
    """One line that holds each of `parts`."""
    return pytest.raises(UserError, match="^[^\n]*" + "[^\n]*".join(parts) + "[^\n]*$")


def test_a_run_directory_is_made(tmp_path):
    preflight.check_writable(tmp_path / "runs" / "a")
    assert list((tmp_path / "runs" / "a").iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with refused("runs", "can't be written", "root="):
        preflight.check_writable(tmp_path / "runs" / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_of_someone_else_is_refused():
    with refused("/proc", "can't be written"):
        preflight.check_writable(Path("/proc"))


def test_disk_space(tmp_path):
    preflight.check_free_disk(tmp_path, 0)
    with refused(r"\d+ MB free", "1000000000000 MB are needed", "min_free_disk_mb"):
        preflight.check_free_disk(tmp_path, 10**12)


def test_redis_server_is_looked_for_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("redis-server is not on the PATH", "make setup"):
        preflight.check_redis_server()
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert preflight.check_redis_server() == str(program)


def model_folder(folder: Path, *files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


def test_a_model_folder_is_whole(tmp_path):
    preflight.check_model_folder(model_folder(tmp_path / "m", "config.json", "tokenizer.json", "model.safetensors"))


def test_what_a_model_folder_lacks_is_named(tmp_path):
    with refused("lacks config.json, tokenizer.json, model.safetensors"):
        preflight.check_model_folder(model_folder(tmp_path / "m"))
    with refused("absent", "doesn't exist"):
        preflight.check_model_folder(tmp_path / "absent")


def test_a_missing_shard_is_named(tmp_path):
    folder = model_folder(tmp_path / "m", "config.json", "tokenizer.json", "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused("lacks b.safetensors;"):
        preflight.check_model_folder(folder)


def test_the_same_configuration_resumes_and_what_does_not_matter_may_change(tmp_path):
    preflight.check_same_configuration(tmp_path, CONFIG)
    assert not (tmp_path / preflight.CONFIG_FILE).exists(), "a check binds nothing"
    preflight.save_configuration(tmp_path, CONFIG)
    preflight.check_same_configuration(tmp_path, CONFIG)
    preflight.check_same_configuration(tmp_path, CONFIG | {"actors": {"count": 9}})
    assert json.loads((tmp_path / preflight.CONFIG_FILE).read_text()) == CONFIG
    assert (tmp_path / preflight.CONFIG_FILE).stat().st_mode & 0o077 == 0, "buffer.url may hold a password"


@pytest.mark.parametrize(
    "change, key, before, now",
    [
        ({"seed": 1}, "seed", "0", "1"),
        ({"model": {"name": "smollm2", "source": {}}}, "model.name", "nano", "smollm2"),
        ({"curriculum": [{"timeout_s": 40.0, "steps": 8}]}, "curriculum.0.timeout_s", "20.0", "40.0"),
        ({"learner": {"objective": "klong", "objective_options": {"clip": 0.2}}},
         "learner.objective_options.clip", "absent", "0.2"),
        ({"curriculum": []}, "curriculum.0.timeout_s", "20.0", "absent"),
    ],
)  # fmt: skip
def test_another_configuration_is_refused_by_its_first_difference(tmp_path, change, key, before, now):
    preflight.save_configuration(tmp_path, CONFIG)
    with refused(f"{key}=.?{before}", f"{key}=.?{now}", "name="):
        preflight.check_same_configuration(tmp_path, CONFIG | change)


def test_a_key_is_a_whole_word():
    assert preflight.first_difference({"seeds": 1}, {"seeds": 2}, ["seed"]) is None


def test_a_run_directory_has_one_holder_and_a_dead_one_holds_nothing(tmp_path):
    program = (
        "import sys, pathlib; from klong_rl.preflight import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with refused(f"in use by process {holder.pid} on ", "name="), preflight.locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with preflight.locked(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / preflight.LOCK_FILE).read_text()


def test_a_program_started_under_the_lock_does_not_keep_it(tmp_path):
    with preflight.locked(tmp_path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with preflight.locked(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_window_too_short_for_a_task_s_prompt_is_refused_with_the_numbers(chat):
    config = RunConfig(
        curriculum=CurriculumConfig(stages=[StageConfig(difficulty=2)]),
        window=WindowConfig(max_tokens=1024),
        agent=AgentConfig(action_tokens=40),
    )
    preflight.check_prompts(config, RelayTasks(), chat)
    config.window.max_tokens = 50
    with refused("window.max_tokens=50", "stage 1", "relay", "tokens of this model", "agent.action_tokens=40"):
        preflight.check_prompts(config, RelayTasks(), chat)


class WordyTasks(RelayTasks):
    """Tasks whose prompts grow with the difficulty."""

    def train(self, difficulty: int, index: int) -> Task:
        return replace(super().train(2, index), instruction="cat amber " * difficulty)


def test_every_difficulty_of_a_mix_must_fit(chat):
    stage = StageConfig(difficulty=1, mix={1: 0.5, 2: 0.5})
    config = RunConfig(
        curriculum=CurriculumConfig(stages=[stage]),
        window=WindowConfig(max_tokens=400),
        agent=AgentConfig(action_tokens=40),
    )
    preflight.check_prompts(config, WordyTasks(), chat)
    stage.mix = {1: 0.5, 500: 0.5}
    with refused("too short for stage 1"):
        preflight.check_prompts(config, WordyTasks(), chat)
