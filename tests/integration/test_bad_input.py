"""Bad input to a launch: one clear line, exit code 2, and nothing half-started."""

import json
from pathlib import Path

import pytest

from tests.launched import containers_of

pytestmark = pytest.mark.integration


def refused(run, run_dir: Path, *parts: str) -> None:
    assert run.finish(60) == 2, run.output()
    (line,) = run.output().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    run.wait_until_gone(5)
    assert not (run_dir / "metrics.jsonl").exists()


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return tmp_path / "runs" / "mini"


def test_no_docker_daemon(launch, run_dir):
    refused(launch(DOCKER_HOST="unix:///nowhere/docker.sock"), run_dir, "/nowhere/docker.sock")


def test_an_image_that_is_missing(launch, run_dir):
    refused(launch("sandbox.image=klong-none"), run_dir, "klong-none", "make image")
    assert containers_of(run_dir) == []


def test_a_socket_that_is_taken(launch, run_dir):
    (run_dir / "redis").mkdir(parents=True)
    (run_dir / "redis" / "redis.sock").write_text("taken")
    refused(launch(), run_dir, "redis.sock")


def test_a_redis_that_does_not_answer(launch, run_dir):
    refused(launch("buffer.url=redis://127.0.0.1:1", "buffer.deadline_s=2"), run_dir, "redis://127.0.0.1:1")


def test_a_full_disk(launch, run_dir):
    refused(launch("min_free_disk_mb=1000000000"), run_dir, str(run_dir), "1000000000 MB", "min_free_disk_mb")


def test_a_run_directory_of_another_configuration(launch, run_dir):
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({"window": {"max_tokens": 7}}))
    refused(launch(), run_dir, "window.max_tokens=7", "name=")


def test_a_run_directory_in_use(launch, run_dir):
    from klong_rl import preflight

    run_dir.mkdir(parents=True)
    with preflight.locked(run_dir):
        refused(launch(), run_dir, "in use by process", "name=")


def test_a_model_folder_without_tokenizer(launch, run_dir, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    overrides = ("model=local", f"model.source.path={folder}", "cold_start.steps=0")
    refused(launch(*overrides), run_dir, str(folder), "tokenizer.json")


def test_an_option_that_the_objective_does_not_have(launch, run_dir):
    overrides = ("learner.objective=grpo", "+learner.objective_options.clip=0.3")
    refused(launch(*overrides), run_dir, "'grpo'", "['clip']", "clip_high", "kl_coefficient")


def test_a_layout_that_does_not_fit_the_model(launch, run_dir):
    refused(launch("learner.layout.tensor=3"), run_dir, "layout.tensor=3 does not divide num_attention_heads=4")


def test_no_actors(launch, run_dir):
    refused(launch("actors.count=0"), run_dir, "actors.count=0", "1 or more")
