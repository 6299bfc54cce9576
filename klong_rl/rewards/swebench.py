"""SWE-bench's verdict: the agent's patch, on a pristine container of the instance's image, against its hidden tests.

Which commands apply the patch, the script that runs the tests, the reading of its log and what counts as resolved are
the official package's own, asked in an interpreter of its own (klong_rl.evaluation.swebench_official): its dependencies
and ours don't mix.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from klong_rl.errors import UserError
from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.tasks.swebench import TESTBED
from klong_rl.types import Verdict

OFFICIAL = Path(__file__).parent.parent / "evaluation" / "swebench_official.py"
PATCH, SCRIPT, LOG = "/tmp/patch.diff", "/eval.sh", "/tmp/eval.log"
PATCH_BYTES, LOG_BYTES = 8 << 20, 64 << 20
GIT_S, OFFICIAL_S = 120.0, 300.0
GIT = f"git -c safe.directory='*' -C {TESTBED}"
RESET = f"{GIT} checkout -- . ; {GIT} clean -fd"


async def swebench(
    episode: FinishedEpisode, sandbox: Any, judge: Judge, *, python: str, timeout_s: float = 1800.0
) -> Verdict:
    """1 if the official report says resolved. `python` is the interpreter that has swebench; `timeout_s` is for the
    tests, which have failed over it. A patch that changes nothing, or can't be applied, scores 0.

    Raises InfrastructureFailure where the report says that the environment failed.
    """
    instance = episode.spec.task.secret.get("instance")
    if instance is None:
        raise TaskFailure(
            f"task {episode.spec.task.id} has no instance in its secret; tasks=swebench makes one that has"
        )
    patch = await _patch(sandbox, instance["base_commit"])
    kept = await judge.keep("model_patch", patch)
    evidence = {"model_patch": kept}
    if not patch.strip():
        return Verdict(score=0.0, parts={"solved": 0.0}, evidence=evidence | {"why": "nothing was changed"})
    plan = await ask(python, {"do": "plan", "instance": instance})
    async with judge.fresh(episode.spec.task.image) as container:
        await _put(container, PATCH, patch)
        if not await _applied(container, plan["apply"]):
            return Verdict(score=0.0, parts={"solved": 0.0}, evidence=evidence | {"why": "the patch can't be applied"})
        await _put(container, SCRIPT, plan["eval_script"].encode())
        run = await _run(container, f"/bin/bash {SCRIPT} > {LOG} 2>&1", timeout_s, cwd="/")
        if run.timed_out:
            why = f"the tests took over {timeout_s:g} s"
            return Verdict(score=0.0, parts={"solved": 0.0}, evidence=evidence | {"why": why})
        log = await container.read(LOG, limit=LOG_BYTES)
    name = {"instance_id": instance["instance_id"], "model_name_or_path": "klong_rl"}
    prediction = name | {"model_patch": patch.decode(errors="replace")}
    with tempfile.NamedTemporaryFile(suffix=".log") as file:
        await asyncio.to_thread(Path(file.name).write_text, log.decode(errors="replace"))
        report = await ask(
            python, {"do": "grade", "instance": instance, "prediction": prediction, "log": file.name}
        )  # fmt: skip
    await judge.keep("report", json.dumps(report).encode())
    return verdict_of(report, evidence)


def verdict_of(report: dict[str, Any], evidence: dict[str, str]) -> Verdict:
    """Of an official report; `fail_to_pass` and `pass_to_pass` are the shares of those tests that passed."""
    if report.get("infra_failure"):
        raise InfrastructureFailure(f"swebench finds the environment at fault: {report.get('infra_failure_reason')}")
    parts = {"solved": float(report["resolved"]), "applied": float(report["patch_successfully_applied"])}
    for kind in ("FAIL_TO_PASS", "PASS_TO_PASS"):
        found = report.get("tests_status", {}).get(kind, {"success": [], "failure": []})
        total = len(found["success"]) + len(found["failure"])
        if total:
            parts[kind.lower()] = len(found["success"]) / total
    return Verdict(score=float(report["resolved"]), parts=parts, evidence=evidence)


async def ask(python: str, request: dict[str, Any]) -> dict[str, Any]:
    """What the official package answers. Raises UserError where it isn't there, InfrastructureFailure."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(python, str(OFFICIAL), stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise UserError(f"reward.python={python} can't be run ({error.strerror}); `make swebench` makes it") from error
    try:
        async with asyncio.timeout(OFFICIAL_S):
            out, err = await process.communicate(json.dumps(request).encode())
    except TimeoutError as error:
        raise InfrastructureFailure(f"{python} gave no answer about swebench within {OFFICIAL_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = err.decode(errors="replace").strip().splitlines()[-1:]
        if said and "No module named 'swebench'" in said[0]:
            raise UserError(f"reward.python={python} has no swebench; `make swebench` makes one that has")
        raise InfrastructureFailure(f"the official grading failed: {' '.join(said)}")
    return json.loads(out)


async def _patch(sandbox: Any, base: str) -> bytes:
    """What the agent changed since the instance's commit, new files included, ignored ones not."""
    await sandbox.halt()
    command = f"{GIT} add -A && {GIT} -c core.fileMode=false diff --binary --no-color --cached {base} > {PATCH}"
    result = await _run(sandbox, command, GIT_S)
    if result.exit_code != 0:
        raise AgentFailure(f"git can't tell what was changed: {result.output[-300:]}")
    patch = await sandbox.read(PATCH, limit=PATCH_BYTES)
    if len(patch) == PATCH_BYTES:
        raise AgentFailure(f"the patch is over {PATCH_BYTES >> 20} MiB")
    return patch


async def _applied(container: Any, commands: list[str]) -> bool:
    for number, command in enumerate(commands):
        if number:
            await _run(container, RESET, GIT_S)
        result = await _run(container, f"cd {TESTBED} && {command} {PATCH}", GIT_S)
        if result.exit_code == 0:
            return True
    reverse = await _run(container, f"{GIT} apply --check --reverse {PATCH}", GIT_S)
    return reverse.exit_code == 0


async def _put(container: Any, path: str, data: bytes) -> None:
    result = await _run(container, f"cat > {path}", GIT_S, stdin=data)
    if result.exit_code != 0:
        raise InfrastructureFailure(f"{path} can't be written in a fresh container: {result.output[-300:]}")


async def _run(sandbox: Any, command: str, timeout_s: float, **options: Any) -> Any:
    result = await sandbox.exec(command, timeout_s=timeout_s, **options)
    if result.interrupted:
        raise InfrastructureFailure(f"the sandbox of {sandbox.episode} was lost in {command[:60]!r}")
    return result
