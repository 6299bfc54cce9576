"""What a GPU is used for, and how well: learner, rollout, publish and agreement, each beside its rival in one run.

    python -m benchmarks.gpu [--out FOLDER] [--parts NAME ...]

Needs one GPU with 80 GB; takes about six minutes, as engines come up beside one another and only the measuring is one
part at a time (benchmarks.gpu.turns). Correctness comes first. Each part's figures are in FOLDER as soon as they are
known, all of them with the machine's in FOLDER/gpu.json at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu import machine, models, parts, report
from benchmarks.gpu.machine import in_child
from benchmarks.gpu.turns import Turns

LOOK_S = 0.2


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--parts", nargs="+", default=list(parts.ORDER), choices=list(parts.ORDER))
    cli.add_argument("--out", type=Path, default=Path("runs/gpu-benchmark"))
    cli.add_argument("--commit", default="", help="noted in the results")
    options = cli.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for left in (*out.glob("*.over"), *out.glob("*.json")):
        left.unlink()
    began = time.monotonic()
    order = tuple(part for part in parts.ORDER if part in options.parts)
    in_child(_prepare, out, out / "models", options.commit)
    children = {name: _start(out, order, name) for name in order if name != "publish"}
    _watch(out, order, children, began)
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json") if path.stem != "gpu"}
    results["host"]["seconds"] = round(time.monotonic() - began)
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    print(report.table(results))
    sys.exit(0 if results.get("correctness", {}).get("passed", True) else 1)


def _prepare(out: Path, folders: Path, commit: str) -> None:
    for name in models.SHAPES:
        models.build(name, folders)
    (out / "host.json").write_text(json.dumps(machine.host() | {"commit": commit}))


def _start(out: Path, order: tuple[str, ...], name: str) -> multiprocessing.Process:
    child = multiprocessing.get_context("spawn").Process(target=_part, args=(Turns(out, order, name),), name=name)
    child.start()
    return child


def _part(turns: Turns) -> None:
    """In a session of its own, and nothing of that is left at its end; its words go to a file."""
    os.setsid()
    log = os.open(turns.folder / f"{turns.name}.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        parts.run(turns, turns.folder / "models")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os.killpg(0, signal.SIGKILL)  # an engine's processes too: the next part needs their memory now


def _watch(out: Path, order: tuple[str, ...], children: dict[str, multiprocessing.Process], began: float) -> None:
    """Until every part is over; one past its deadline is ended, and the next has its turn."""
    alive = dict(children)
    told: set[str] = set()
    while alive:
        time.sleep(LOOK_S)
        for name, child in list(alive.items()):
            parts_of = ("publish", name) if name == f"rollout-{parts.LARGE}" else (name,)
            deadline = max(parts.DEADLINE_S[part] for part in parts_of if part in order)
            if child.is_alive() and time.monotonic() - began > deadline:
                os.killpg(child.pid, signal.SIGKILL)
                print(f"{name} ended at its deadline of {deadline} s", flush=True)
            if not child.is_alive():
                child.join()
                del alive[name]
                for part in parts_of:
                    Turns(out, order, part).end()
        for path in sorted(out.glob("*.over")):
            if path.stem not in told:
                told.add(path.stem)
                known = "" if (out / f"{path.stem}.json").exists() else ", without figures"
                print(f"{time.monotonic() - began:4.0f} s: {path.stem} is over{known}", flush=True)
