"""What a sandbox costs on this host, each figure beside a rival's, measured in one run.

    benchmarks/sandbox_image.sh; pip install --no-deps -r conf/requirements/benchmarks.txt
    python -m benchmarks.sandboxes [--json OUT]

exec       one no-op command over our open shell, `docker exec` through the API and the CLI, and SWE-ReX, in the same
           container, in turns
ready      from the wish to the answer of a first command: a sandbox that was made ahead, one that wasn't; beside a
           plain `docker run`, which is let off the command
snapshot   of 100 MB that a command wrote, and the restore until a first command has read them
held       how many live containers answer with a p99 under 50 ms while each gets a command about once a second: the
           pace of an agent that thinks for a second; and the memory that each takes in our process

Times are milliseconds. Ratios are of medians; where sides are compared they took turns.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docker
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import cold_start, contenders
from klong_rl.types import Limits
from sandboxes.docker import DockerSandboxes
from sandboxes.docker_sandbox import DockerSandbox
from sandboxes.host import Kind

TIMEOUT_S = 120.0
EXEC_BAR, READY_BAR = 1 / 50, 1 / 5  # of `docker exec` through the API, of `docker run`
HELD_BAR, HELD_P99_MS = 100, 50.0
SNAPSHOT_MB = 100
THINK_S = (0.5, 1.5)  # between two commands of one agent
LOAD_S = 15.0
SETTLE_S = 0.05  # before each command: Docker clears away after an exec, which is not the next one's cost
LIMITS = Limits(disk_mb=1024)


def summary(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {"p50": round(float(np.median(seconds)) * 1e3, 3), "p99": round(float(np.quantile(seconds, 0.99)) * 1e3, 3)}


async def timed(act: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


async def run_true(sandbox: DockerSandbox) -> None:
    assert (await sandbox.exec("true", timeout_s=TIMEOUT_S)).exit_code == 0


async def measure_exec(run: str, image: str, rounds: int) -> dict[str, Any]:
    factory = DockerSandboxes(run, network="host")
    sandbox = await factory.create("exec", 1, image, LIMITS)
    seconds: dict[str, list[float]] = {}
    async with contenders(sandbox) as acts:
        for number in range(rounds + 1):
            for name, act in acts.items():
                await asyncio.sleep(SETTLE_S)
                took = await timed(act)
                if number:  # the first is a warm-up
                    seconds.setdefault(name, []).append(took)
    await sandbox.close()
    await factory.close()
    return {name: summary(taken) for name, taken in seconds.items()}


async def measure_ready(run: str, image: str, rounds: int) -> dict[str, Any]:
    warm, cold = DockerSandboxes(run, warm=4), DockerSandboxes(run)
    api = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())
    seconds: dict[str, list[float]] = {"from the pool": [], "no pool": [], "docker run": []}

    async def make(factory: DockerSandboxes, episode: str) -> None:
        sandbox = await factory.create(episode, 1, image, LIMITS)
        await run_true(sandbox)
        made.append(sandbox)

    for number in range(rounds + 1):
        made: list[DockerSandbox] = []
        acts = [
            ("from the pool", lambda n=number: make(warm, f"warm-{n}")),
            ("no pool", lambda n=number: make(cold, f"cold-{n}")),
            ("docker run", lambda n=number: cold_start(image, f"{run}-{n}")),
        ]
        for name, act in acts:
            took = await timed(act)
            if number:  # the first finds an empty pool
                seconds[name].append(took)
        api.remove_container(f"{run}-{number}", force=True)
        await asyncio.gather(*(sandbox.close() for sandbox in made))
        while warm.hosts[0].pool.ready(Kind(image, LIMITS)) < 4:
            await asyncio.sleep(0.05)
    await warm.close()
    await cold.close()
    api.close()
    return {name: summary(taken) for name, taken in seconds.items()}


async def measure_snapshot(run: str, image: str, rounds: int) -> dict[str, Any]:
    factory = DockerSandboxes(run)
    seconds: dict[str, list[float]] = {"snapshot": [], "restore": []}
    for number in range(rounds):
        sandbox = await factory.create(f"kept-{number}", 1, image, LIMITS)
        await sandbox.exec(f"head -c {SNAPSHOT_MB}000000 /dev/urandom > data; sync data", timeout_s=TIMEOUT_S)
        began = time.perf_counter()
        kept = await sandbox.snapshot("benchmark")
        seconds["snapshot"].append(time.perf_counter() - began)
        began = time.perf_counter()
        restored = await factory.create(f"restored-{number}", 1, kept, LIMITS)
        assert (await restored.exec("cat data | wc -c", timeout_s=TIMEOUT_S)).output == f"{SNAPSHOT_MB}000000\n"
        seconds["restore"].append(time.perf_counter() - began)
        await asyncio.gather(sandbox.close(), restored.close())
        await factory.forget_snapshots(f"kept-{number}")
    await factory.close()
    return {name: summary(taken) for name, taken in seconds.items()}


async def under_load(held: list[DockerSandbox]) -> list[float]:
    """Seconds of every command while each sandbox gets one after each think time."""
    until, seconds = time.monotonic() + LOAD_S, []

    async def agent(sandbox: DockerSandbox) -> None:
        await asyncio.sleep(random.uniform(0, THINK_S[1]))
        while time.monotonic() < until:
            seconds.append(await timed(lambda: run_true(sandbox)))
            await asyncio.sleep(random.uniform(*THINK_S))

    await asyncio.gather(*(agent(sandbox) for sandbox in held))
    return seconds


async def measure_held(run: str, image: str, most: int, step: int) -> dict[str, Any]:
    """More and more of them, until p99 is over the bar or there are `most`."""
    factory, held, levels, process = DockerSandboxes(run), [], [], psutil.Process()
    rss = {0: process.memory_info().rss}
    while len(held) < most:
        news = range(len(held), min(most, len(held) + step))
        held += await asyncio.gather(*(factory.create(f"held-{n}", 1, image, LIMITS) for n in news))
        times = await under_load(held)
        gc.collect()
        rss[len(held)] = process.memory_info().rss
        levels.append({"held": len(held), "commands": len(times), **summary(times)})
        if levels[-1]["p99"] >= HELD_P99_MS:
            break
    many = len(held)
    await asyncio.gather(*(sandbox.close() for sandbox in held))
    await factory.close()
    return {
        "levels": levels,
        "held": max((level["held"] for level in levels if level["p99"] < HELD_P99_MS), default=0),
        "rss_bytes_per_sandbox": (rss[many] - rss[0]) // many,
    }


def about_this_run() -> dict[str, Any]:
    api = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())
    engine, info = api.version(), api.info()
    api.close()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "docker": engine["Version"],
        "storage": f"{info['Driver']} on {dict(info['DriverStatus']).get('Backing Filesystem', '?')}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("docker", "swe-rex")},
    }


def bars(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each bar with what was measured."""
    exec_ratio = results["exec"]["ours"]["p50"] / results["exec"]["api"]["p50"]
    ready_ratio = results["ready"]["from the pool"]["p50"] / results["ready"]["docker run"]["p50"]
    return {
        "exec, of `docker exec` through the API": {
            "measured": round(exec_ratio, 4), "bar": EXEC_BAR, "holds": exec_ratio <= EXEC_BAR
        },
        "ready from the pool, of `docker run`": {
            "measured": round(ready_ratio, 4), "bar": READY_BAR, "holds": ready_ratio <= READY_BAR
        },
        f"containers held with a p99 under {HELD_P99_MS:g} ms": {
            "measured": results["held"]["held"], "bar": HELD_BAR, "holds": results["held"]["held"] >= HELD_BAR
        },
    }  # fmt: skip


def show(results: dict[str, Any]) -> None:
    table = Table("", "p50 ms", "p99 ms", title="Sandboxes on this host")
    for section in ("exec", "ready", "snapshot"):
        for name, value in results[section].items():
            table.add_row(f"{section}: {name}", f"{value['p50']:.2f}", f"{value['p99']:.2f}")
    for level in results["held"]["levels"]:
        table.add_row(f"exec with {level['held']} held", f"{level['p50']:.2f}", f"{level['p99']:.2f}")
    console = Console()
    console.print(table)
    console.print(f"memory of our process per held sandbox: {results['held']['rss_bytes_per_sandbox']} bytes")
    for name, bar in results["bars"].items():
        console.print(f"{'holds' if bar['holds'] else 'MISSED'}: {name}: {bar['measured']} (bar {bar['bar']:g})")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="klong-sandbox-benchmark")
    parser.add_argument("--rounds", type=int, default=200, help="commands of each way to run them")
    parser.add_argument("--starts", type=int, default=30, help="of each way to start")
    parser.add_argument("--snapshots", type=int, default=5)
    parser.add_argument("--most", type=int, default=200, help="containers held at most")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    run = f"benchmark-{uuid.uuid4().hex[:8]}"
    results: dict[str, Any] = {"machine": about_this_run()}
    try:
        results["exec"] = await measure_exec(run, arguments.image, arguments.rounds)
        results["ready"] = await measure_ready(run, arguments.image, arguments.starts)
        results["snapshot"] = await measure_snapshot(run, arguments.image, arguments.snapshots)
        results["held"] = await measure_held(run, arguments.image, arguments.most, 25)
    finally:
        cleaner = DockerSandboxes(run)
        await cleaner.reap(keep=set())
        await cleaner.close()
    results["bars"] = bars(results)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(bar["holds"] for bar in results["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
