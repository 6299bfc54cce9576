"""What is measured, in the order of the turns, each part a process of its own: Megatron and vLLM keep what they take.

correctness     tests/gpu without the engine's: the learner against transformers in float32, packed against alone
rollout-*       our agent loop and engine, and the same requests by hand (benchmarks.gpu.rollout)
generate-*      the same requests to LLM.generate
publish         engine and learner of the larger model together (benchmarks.gpu.publishing), in rollout's process
learner-*       our step and a bare Megatron-core loop (benchmarks.gpu.learner)
"""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.turns import Turns

SMALL, LARGE = "smollm2-135m", "qwen3-1.7b"
ORDER = (
    "correctness",
    f"rollout-{SMALL}",
    f"generate-{SMALL}",
    f"rollout-{LARGE}",
    f"generate-{LARGE}",
    "publish",
    f"learner-{SMALL}",
    f"learner-{LARGE}",
)
# Seconds from the start of all; what takes longer is ended, and the others go on.
DEADLINE_S = dict(zip(ORDER, (150, 270, 290, 330, 350, 410, 460, 520), strict=True))
CACHE_GIB = {SMALL: 2, LARGE: 7}  # for 64 sequences of 800 tokens
LEARNER_MEMORY, LEARNER_TOKENS = 0.62, 2048  # beside the engine of the larger model
LR = 2e-5  # of the updates that make tokens stale


def correctness(turns: Turns, folders: Path) -> None:
    """The tests' own figures are in their output."""
    with turns.alone():
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-s", "tests/gpu", "--ignore=tests/gpu/test_engine.py"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S["correctness"])
        seconds = round(time.monotonic() - began, 1)
        turns.write({"passed": done.returncode == 0, "seconds": seconds, "output": done.stdout[-6000:]})


def rollout(turns: Turns, folders: Path, name: str) -> None:
    asyncio.run(_rollout(turns, folders / name, name))


async def _rollout(turns: Turns, folder: Path, name: str) -> None:
    from actors.engine import Engine
    from benchmarks.gpu import rollout as measured
    from klong_rl.chat import ChatFormat

    chat = ChatFormat(folder)
    began = time.monotonic()
    engine = await Engine.start(measured.engine_config(CACHE_GIB[name]), str(folder), chat.end_id, version=0, seed=0)
    result: dict[str, Any] = {"model": name, "engine_start_s": round(time.monotonic() - began, 1)}
    try:
        with turns.alone(is_last=name != LARGE):
            rates, episodes = await measured.ours_and_by_hand(engine, chat)
            turns.write(result | rates)
            _requests_file(turns, name).write_bytes(pickle.dumps(episodes.requests()))
        if name == LARGE:
            await _publish(Turns(turns.folder, turns.order, "publish"), folder, engine, episodes.windows())
    finally:
        engine.shutdown()


async def _publish(turns: Turns, folder: Path, engine: Any, windows: list[Any]) -> None:
    import mbridge  # noqa: F401  while others measure

    from benchmarks.gpu import learner, publishing

    with turns.alone(is_last=True):
        rank = learner.start_rank(folder, LEARNER_TOKENS, LEARNER_MEMORY, lr=LR)
        result: dict[str, Any] = {"model": LARGE, "agreement": await publishing.agreement(engine, rank, windows)}
        turns.write(result)
        result["publish"] = await publishing.publish(engine, rank, windows)
        turns.write(result)


def generate(turns: Turns, folders: Path, name: str) -> None:
    from benchmarks.gpu import rollout as measured

    llm = measured.start_llm(folders / name, CACHE_GIB[name])
    with turns.alone(is_last=True):
        turns.write(measured.generate(llm, pickle.loads(_requests_file(turns, name).read_bytes())))


def learner(turns: Turns, folders: Path, name: str) -> None:
    from benchmarks.gpu.learner import Step, measure

    steps = {
        SMALL: [Step(8192, 2048, 4), Step(32_768, 2048, 1)],
        # A large model's state leaves no room for what a long row keeps for its backward pass.
        LARGE: [Step(8192, 2048, 4), Step(32_768, 4096, 1, recompute=0.5)],
    }
    measure(turns, name, folders / name, steps[name])


def run(turns: Turns, folders: Path) -> None:
    """The part of `turns.name`."""
    kind, _, name = turns.name.partition("-")
    arguments = (name,) if name else ()
    {"correctness": correctness, "rollout": rollout, "generate": generate, "learner": learner}[kind](
        turns, folders, *arguments
    )


def _requests_file(turns: Turns, name: str) -> Path:
    return turns.folder / f"requests-{name}.pickle"
