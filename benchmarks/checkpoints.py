"""What a checkpoint costs a learner that trains: written beside the steps that follow, or waited for.

    python -m benchmarks.checkpoints [--rounds 7] [--json OUT]

A real learner group on Ray takes steps of supervised fine-tuning. Each round has a few plain steps, a checkpoint that
is waited for, and one that is written beside steps; then as many bytes written and synced to one file of the same disk,
which no checkpoint can be faster than. A checkpoint is Megatron's and the Hugging Face folder, as a run writes it.

    waited for    begin, and finish at once
    beside        begin; steps until the writers are done; finish. It costs begin and finish, and what these steps took
                  longer than plain ones, since writers and training share the machine
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from klong_rl import services
from klong_rl.config import LearnerConfig
from klong_rl.durable import fsync, fsync_tree
from klong_rl.learner_config import LayoutConfig
from klong_rl.types import Window

NANO = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
LARGER = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
# Shape, data ranks, windows of 128 tokens a step: steps of about a second.
CASES = {"nano": (NANO, 1, 32), "nano, 2 ranks": (NANO, 2, 32), "34 M parameters": (LARGER, 1, 8)}
PLAIN_STEPS = 3  # a round
TOKENS = 128


def build_model(folder: Path, shape: dict[str, int]) -> int:
    """An untrained Llama; its number of parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = shape["hidden_size"] // 64
    config = LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def made_windows(count: int, vocab_size: int) -> list[Window]:
    rng, targets_T = np.random.default_rng(0), np.ones(TOKENS, np.uint8)
    targets_T[0] = 0
    return [
        Window(
            id=f"w{i}",
            episode="e",
            group="g",
            stage=1,
            tokens_T=rng.integers(1, vocab_size, TOKENS, dtype=np.int32),
            targets_T=targets_T,
            logprobs_T=np.zeros(TOKENS, np.float32),
            versions=((0, TOKENS - 1),),
            advantage=1.0,
        )
        for i in range(count)
    ]


def seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def waited_for(learner: Any, folder: Path) -> dict[str, float]:
    begin = seconds(lambda: learner.begin_save(folder))
    finish = seconds(lambda: (learner.finish_save(), fsync_tree(folder)))
    return {"begin": begin, "finish": finish, "cost": begin + finish}


def beside(learner: Any, folder: Path, step: Callable[[], Any], plain_s: float) -> dict[str, float]:
    begin = seconds(lambda: learner.begin_save(folder))
    steps, finish, done = [], 0.0, False
    while not done:
        steps.append(seconds(step))
        began = time.perf_counter()
        done = learner.finish_save(wait=False)
        finish += time.perf_counter() - began
    finish += seconds(lambda: fsync_tree(folder))
    slower = sum(steps) - plain_s * len(steps)
    return {"begin": begin, "steps": len(steps), "slower": slower, "finish": finish, "cost": begin + finish + slower}


def bare_write(path: Path, size: int) -> float:
    """Seconds for `size` bytes in one file, synced."""
    data = np.random.default_rng(0).bytes(size)

    def write() -> None:
        path.write_bytes(data)
        fsync(path)

    return seconds(write)


def measure(shape: dict[str, int], ranks: int, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One case; seconds are medians over the rounds."""
    from learners.group import LearnerGroup
    from learners.job import LearnerJob
    from learners.publish import WeightFolder

    parameters = build_model(folder / "model", shape)
    job = LearnerJob(str(folder / "model"), LearnerConfig(layout=LayoutConfig(data=ranks)))
    learner = LearnerGroup(job, WeightFolder(folder / "weights"))
    windows = made_windows(count, shape["vocab_size"])
    plain, made = [], {"waited for": [], "beside": [], "bare write": []}

    def step() -> None:
        learner.sft_step(windows)

    try:
        for number in range(rounds + 1):
            if number == 1:  # the first round warms up: imports, the results' server process
                plain, made = [], {name: [] for name in made}
            plain += [seconds(step) for _ in range(PLAIN_STEPS)]
            made["waited for"].append(waited_for(learner, folder / "sync"))
            size = sum(path.stat().st_size for path in (folder / "sync").rglob("*") if path.is_file())
            made["beside"].append(beside(learner, folder / "async", step, median(plain)))
            made["bare write"].append({"cost": bare_write(folder / "bare", size)})
            shutil.rmtree(folder / "sync")
            shutil.rmtree(folder / "async")
    finally:
        learner.shutdown()
    medians = {way: {key: median(one[key] for one in all_) for key in all_[0]} for way, all_ in made.items()}
    return {"parameters": parameters, "ranks": ranks, "bytes": size, "plain_step": median(plain)} | medians


def show(cases: dict[str, Any]) -> None:
    """Seconds a checkpoint."""
    console = Console()
    table = Table(
        "", "MB", "a plain step", "waited for", "beside", "of it begin", "steps slower by", "bare write", "ratio"
    )
    for name, case in cases.items():
        waited, aside = case["waited for"]["cost"], case["beside"]
        figures = (case["plain_step"], waited, aside["cost"], aside["begin"], aside["slower"])
        table.add_row(
            name,
            f"{case['bytes'] / 1e6:.0f}",
            *(f"{figure:.2f}" for figure in (*figures, case["bare write"]["cost"])),
            f"{aside['cost'] / waited:.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    services.quiet_libraries()
    cases = {}
    with ExitStack() as stack:
        services.start_ray(stack, "")
        for name, (shape, ranks, count) in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                cases[name] = measure(shape, ranks, count, arguments.rounds, Path(folder))
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.0f}",
        "versions": {name: version(name) for name in ("torch", "megatron-core", "ray")},
        "rounds": arguments.rounds,
        "cases": cases,
    }
    show(cases)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
