"""SWE-bench's flow on a small repository: its own image, the official grading, and a patch for the official harness."""

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure
from klong_rl.rewards.swebench import ask, verdict_of
from klong_rl.tasks.swebench import SweBenchTasks
from tests.integration.test_evaluate import parts_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("KLONG_SWEBENCH_PYTHON", str(ROOT / ".venv-swebench/bin/python"))
BASE = "klong-swebench-test"  # Debian with git and pytest
REPOSITORY = r"""
FROM klong-swebench-test
USER root
WORKDIR /testbed
RUN git init -q . && git config user.email a@b.c && git config user.name a && mkdir tests && \
    printf 'def double(x):\n    return x + x\n\n\ndef half(x):\n    return x * 2\n' > m.py && \
    printf 'from m import double\n\n\ndef test_double():\n    assert double(2) == 4\n' > tests/test_m.py && \
    git add -A && git commit -qm first && git tag base
"""
TESTS = """from m import double, half


def test_double():
    assert double(2) == 4


def test_half():
    assert half(4) == 2
"""
EVAL = f"""#!/bin/bash
set -uxo pipefail
cd /testbed
git config --global --add safe.directory /testbed
cat > tests/test_m.py <<'EOF_TESTS'
{TESTS}EOF_TESTS
: '>>>>> Start Test Output'
python3 -m pytest -rA -p no:cacheprovider tests/test_m.py
: '>>>>> End Test Output'
git checkout base tests/test_m.py
"""
GOLD = "--- a/m.py\n+++ b/m.py\n@@ -3,4 +3,4 @@\n \n \n def half(x):\n-    return x * 2\n+    return x // 2\n"


def row(name: str, image: str, **changed) -> dict:
    found = {
        "instance_id": name, "repo": "a/m", "version": "1.0", "base_commit": "base",
        "problem_statement": "half doubles", "image": image, "eval_script": EVAL,
        "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail",
        "FAIL_TO_PASS": json.dumps(["tests/test_m.py::test_half"]), "patch": GOLD,
        "PASS_TO_PASS": json.dumps(["tests/test_m.py::test_double"]),
    }  # fmt: skip
    return found | changed


def test_a_row_is_a_task_and_what_decides_is_kept_from_the_agent(tmp_path):
    old = row("a__m-2", "", eval_script="")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (row("a__m-1", "i"), old)))
    family = SweBenchTasks(str(path))
    [task] = family.all
    assert task.id == "swebench/a__m-1" and "half doubles" in task.instruction and task.limits.workdir == "/testbed"
    assert "test_half" not in task.instruction and not task.files
    assert family.refused == {"a__m-2": "it lacks fields that swebench 5 needs: image, eval_script"}
    path.write_text("[1]")
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        assert SweBenchTasks(str(path)).all


def test_a_report_that_finds_the_environment_at_fault_is_no_score():
    report = {"resolved": False, "patch_successfully_applied": False}
    report |= {"infra_failure": True, "infra_failure_reason": "disk"}
    with pytest.raises(InfrastructureFailure, match="disk"):
        verdict_of(report, {})
    tests = {"FAIL_TO_PASS": {"success": ["a"], "failure": ["b"]}, "PASS_TO_PASS": {"success": [], "failure": []}}
    partly = report | {"infra_failure": False, "patch_successfully_applied": True, "tests_status": tests}
    assert verdict_of(partly, {}).parts == {"solved": 0.0, "applied": 1.0, "fail_to_pass": 0.5}


async def test_an_interpreter_without_the_official_package_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="make swebench"):
        await ask(str(tmp_path / "absent"), {"do": "plan", "instance": {}})


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    if not Path(PYTHON).exists():
        pytest.skip("make swebench")
    subprocess.run(
        [ROOT / "sandboxes/images/build.sh", BASE, "git", "python3-pytest", "patch"], check=True, timeout=600
    )
    folder, tag = tmp_path_factory.mktemp("image"), f"klong-swebench-{uuid.uuid4().hex[:8]}"
    (folder / "Dockerfile").write_text(REPOSITORY)
    subprocess.run(["docker", "build", "-q", "-t", tag, str(folder)], check=True, capture_output=True, timeout=600)
    yield tag
    subprocess.run(["docker", "rmi", "-f", tag], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
async def test_the_gold_patch_is_resolved_and_others_are_not_and_the_official_harness_takes_them(image, tmp_path):
    """The official report on the same log agrees, since it is the one; that nothing changed is told without it."""
    absent = json.dumps(["tests/test_m.py::test_half", "tests/test_m.py::test_absent"])
    spoilt = row("a__m-2", image, FAIL_TO_PASS=absent)
    broken = row("a__m-3", image, patch=GOLD.replace("return x // 2", "return x // 3"))
    rows = [row("a__m-1", image), spoilt, broken]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suite = ("suite=swebench", f"tasks.path={tmp_path / 'rows.jsonl'}", f"reward.python={PYTHON}", "at_once=1")
    await parts_of(tmp_path / "gold", *suite, "+tasks.limits.memory_mb=512").run()
    found = {each["task"]: each for each in json.loads((tmp_path / "gold/results.json").read_text())["episodes"]}
    assert {name[-1]: each["score"] for name, each in found.items()} == {"1": 1.0, "2": 0.0, "3": 0.0}, found
    assert found["swebench/a__m-2"]["parts"]["fail_to_pass"] == 0.5
    assert found["swebench/a__m-3"]["parts"] == {
        "solved": 0.0,
        "applied": 1.0,
        "fail_to_pass": 0.0,
        "pass_to_pass": 1.0,
    }
    predictions = tmp_path / "gold/predictions.jsonl"
    program = "import sys; from swebench.harness.utils import get_predictions_from_file as g; import json; "
    program += "print(json.dumps(g(sys.argv[1], 'd', 's')))"
    read = subprocess.run([PYTHON, "-c", program, predictions], check=True, capture_output=True, text=True, timeout=300)
    taken = {each["instance_id"]: each["model_patch"] for each in json.loads(read.stdout.splitlines()[-1])}
    assert set(taken) == {"a__m-1", "a__m-2", "a__m-3"} and "+    return x // 2" in taken["a__m-1"]
    empty = "cold_start.demonstrator.empty=true"
    await parts_of(tmp_path / "empty", *suite, empty).run()
    episodes = json.loads((tmp_path / "empty/results.json").read_text())["episodes"]
    assert [(each["score"], each["evidence"]["why"]) for each in episodes] == [(0.0, "nothing was changed")] * 3
