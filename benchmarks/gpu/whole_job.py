"""A whole job of `cluster=split` for some minutes: its own figures, and how busy each GPU is."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KILL_AFTER = 2  # steps


def job(overrides: list[str], seconds: float, kill: bool) -> dict[str, Any]:
    """The whole job, stopped after `seconds`."""
    from klong_rl.monitor.metrics import read_metrics

    root = Path(tempfile.mkdtemp(prefix="klong-job-"))
    command = [sys.executable, "-m", "klong_rl.launch", f"root={root}", "name=job", "cluster=split", *overrides]
    mark = f"KLONG_BENCHMARK={root.name}"
    busy: list[list[int]] = []
    killed_at = 0
    with (root / "log").open("wb") as log:
        env = os.environ | dict([mark.split("=")])
        run = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        until = time.monotonic() + seconds
        while time.monotonic() < until and run.poll() is None:
            time.sleep(0.2)
            steps = len(read_metrics(root / "job"))
            if steps >= 1:
                busy.append(_busy())
            if kill and not killed_at and steps >= KILL_AFTER:
                killed_at = steps
                _kill_engine(mark)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGINT)
        try:
            code = run.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            code = run.wait()
    metrics = read_metrics(root / "job")
    back = re.search(r"rollout-0 died.*started again in (\d+) s", (root / "log").read_text(errors="replace"))
    return {
        "overrides": overrides,
        "exit_code": code,
        "steps": len(metrics),
        "killed_after_step": killed_at,
        "engine_back_after_s": int(back[1]) if back else None,
        "reward": [round(m.reward_mean, 3) for m in metrics],
        "gap_mean": [m.logprob_gap_mean for m in metrics],
        "gap_max": [m.logprob_gap_max for m in metrics],
        "publish_s": [round(m.publish_s, 3) for m in metrics],
        "learner_s": [round(m.learner_s, 3) for m in metrics],
        "wait_s": [round(m.wait_s, 3) for m in metrics],
        "action_tokens": [m.action_tokens for m in metrics],
        "busy": [round(statistics.mean(gpu), 1) for gpu in zip(*busy, strict=True)] if busy else [],
        "output": (root / "log").read_text(errors="replace")[-6000:],
    }


def _busy() -> list[int]:
    """Percent of the last moment in which each GPU ran a kernel."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles]


def _kill_engine(mark: str) -> None:
    """SIGKILL to the model's process of an engine of the launch that has `mark` in its environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_engine = (entry / "cmdline").read_bytes().startswith(b"VLLM::EngineCore")
            is_ours = mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if is_engine and is_ours:
            os.kill(int(entry.name), signal.SIGKILL)
            return
