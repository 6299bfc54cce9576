"""Of whose weights an evaluation is: of one checkpoint, whatever the run that made it does meanwhile."""

import json

import pytest

from klong_rl import evaluate
from klong_rl.errors import UserError


def checkpoint(run, step: int):
    folder = run / "checkpoints" / f"step-{step:06d}" / "hf"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_an_evaluation_goes_on_with_the_checkpoint_that_it_began_with_or_not_at_all(tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "out"
    first = checkpoint(run, 1)
    (run / "config.json").write_text("{}")
    monkeypatch.setattr(evaluate, "run_stoppable", lambda work, stopped: 0)
    command = ["suite=relay", "policy=checkpoint", f"policy.path={run}", f"out={out}"]
    assert evaluate.main(command) == 0 and evaluate.main(command) == 0
    assert json.loads((out / "config.json").read_text())["policy"]["path"] == str(first)
    second = checkpoint(run, 2)
    with pytest.raises(UserError, match=f"policy.path={first}, this launch has policy.path={second}.*set out="):
        evaluate.main(command)
    assert evaluate.main([*command[:2], f"policy.path={first}", command[3]]) == 0


def test_a_run_without_a_checkpoint_is_told_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is a run that has no checkpoint yet"):
        evaluate.model_folder(tmp_path)
