"""`make recipe`: every arrow from papers to a trained agent, with the files that it leaves between them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from klong_rl.monitor.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]


def test_from_two_papers_to_an_agent_that_scores(tmp_path):
    out = tmp_path / "recipe"
    env = os.environ | {"PYTHON": str(ROOT / ".venv" / "bin" / "python")}
    ran = subprocess.run(
        ["examples/recipe.sh", str(out)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1700
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    report = json.loads((out / "factory" / "report.json").read_text())
    assert [row["state"] for row in report["papers"]] == ["ok", "ok"]
    rows = [json.loads(line) for line in (out / "demos" / "trajectories.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"papers/decaying-mean", "papers/square-root-steps"}
    assert list((out / "sft" / "checkpoints").glob("step-*/hf/model.safetensors"))
    steps = read_metrics(out / "rl")
    assert len(steps) == 6 and max(step.reward_mean for step in steps) > 0.3, "the fine-tuned model reproduces papers"
    assert (out / "rl" / "report.html").exists()
