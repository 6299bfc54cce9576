"""Runs under the interpreter that has swebench, and imports nothing else of ours: the official parts of a verdict.

stdin  {"do": "plan", "instance": row}                          out  {"apply": [...], "eval_script": text}
       {"do": "grade", "instance": row, "prediction": {...}, "log": path}   out  the official report of the instance
"""

from __future__ import annotations

import contextlib
import json
import sys


def plan(asked: dict) -> dict:
    """How a patch is applied, in order, and the script that is run after it."""
    from swebench.harness.run_evaluation import GIT_APPLY_CMDS
    from swebench.harness.utils import make_test_spec

    return {"apply": list(GIT_APPLY_CMDS), "eval_script": make_test_spec(asked["instance"]).eval_script}


def grade(asked: dict) -> dict:
    from swebench.harness.grading import get_eval_report
    from swebench.harness.utils import make_test_spec

    spec, prediction = make_test_spec(asked["instance"]), asked["prediction"]
    return get_eval_report(spec, prediction, asked["log"], include_tests_status=True)[prediction["instance_id"]]


if __name__ == "__main__":
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # of the libraries
        answer = {"plan": plan, "grade": grade}[request["do"]](request)
    print(json.dumps(answer))
