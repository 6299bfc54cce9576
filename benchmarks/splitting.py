"""How fast trajectories become windows, in how much memory, and how full the rows are that windows are packed into.

    pip install --no-deps -r conf/requirements/benchmarks.txt
    python -m benchmarks.splitting [--json OUT]

split     trajectories of 2 million tokens, in turns of several sizes, into windows on one core; beside it a bare copy
          of the tokens of the same windows: what no splitting can be faster than
memory    one JSONL row of 2 million tokens, read, split and shuffled, with the peak of what Python and numpy hold
pack      windows of heavy-tailed lengths (log-normal, the longest 20 times the median) into rows of the longest: ours
          beside Hugging Face TRL's best-fit decreasing, on the same lengths
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from klong_rl.buffer import WindowRef
from klong_rl.config import AgentConfig
from klong_rl.fine_tuning.files import DataSet, open_files
from klong_rl.fine_tuning.rows import Encoder
from klong_rl.fine_tuning.stream import Position, WindowSource, WindowStream
from klong_rl.types import Trajectory
from klong_rl.windows import ContextRule, flat, spans, windows
from learners.batch import plan

SPLIT_BAR, PACK_BAR = 20e6, 0.95  # tokens/s on one core; share of the rows that is windows
RULE = ContextRule(max_tokens=32_768, overlap_tokens=8_192, action_tokens=4_096)
TOKENS = 2_000_000
PREFIX = 2_000
TURNS = {"of 60 tokens": 60, "of 400 tokens": 400, "of 2,700 tokens, as KLong's": 2_700}  # 2 M tokens in 733 turns
MEDIAN, LONGEST, WINDOWS = 1_600, 32_000, 4_096
REPEATS = 5


def trajectory(mean_turn: int, seed: int = 0) -> Trajectory:
    """Half of each turn is action; turns are of one to two times half the mean."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(mean_turn // 4, mean_turn - mean_turn // 4, (TOKENS // mean_turn, 2))
    turns = ((np.full(action, 7, np.int32), np.full(answer, 9, np.int32)) for action, answer in pairs)
    return flat("t", np.ones(PREFIX, np.int32), turns)


def fastest(act: Callable[[], Any]) -> float:
    """Seconds of the fastest repetition: what the machine's other work adds is not the code's."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure_split() -> dict[str, dict[str, float]]:
    found = {}
    for name, mean_turn in TURNS.items():
        made = trajectory(mean_turn)
        n_tokens = made.n_tokens()
        ranges = list(spans(made, RULE))

        def split(made: Trajectory = made) -> None:
            for _ in windows(made, RULE):
                pass

        def copy(made: Trajectory = made, ranges: list = ranges) -> None:
            for span in ranges:
                np.concatenate([made.prefix_P, made.tokens_T[span.first : span.end]])

        found[name] = {
            "tokens": n_tokens,
            "turns": len(made.starts_K),
            "windows": len(ranges),
            "tokens_per_s": n_tokens / fastest(split),
            "copy_tokens_per_s": n_tokens / fastest(copy),
        }
    return found


def measure_memory(shuffle_windows: int = 16) -> dict[str, float]:
    """MB at the peak, beside the text of the row itself and the block of windows that is shuffled."""
    made = trajectory(2_700)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "long.jsonl")
        tokens = np.concatenate([made.prefix_P, made.tokens_T])
        agent = np.concatenate([np.zeros(PREFIX, np.uint8), made.agent_T])
        path.write_text(json.dumps({"tokens": tokens.tolist(), "agent": agent.tolist()}))
        Path(folder, "config.json").write_text(json.dumps({"vocab_size": 10}))
        encoder = Encoder(Path(folder), AgentConfig())
        tracemalloc.start()
        source = WindowSource(DataSet(open_files(str(path), "data"), None), encoder, RULE, 0, lambda row: True)
        stream = WindowStream(
            source, Position(), epochs=1, shuffle_windows=shuffle_windows, tokens_per_step=RULE.max_tokens * 8
        )
        count = sum(len(batch.windows) for batch in stream)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {"peak_mb": peak / 1e6, "row_mb": path.stat().st_size / 1e6, "windows": count}


def lengths() -> np.ndarray:
    """Log-normal, cut at LONGEST by drawing again."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(MEDIAN), 1.0, 2 * WINDOWS).astype(int)
    return np.maximum(drawn[drawn <= LONGEST][:WINDOWS], 16)


def measure_pack() -> dict[str, dict[str, float]]:
    """Efficiency is windows' tokens over rows times their room, for both sides."""
    from datasets import Dataset
    from trl import pack_dataset

    drawn = lengths()
    refs = [WindowRef(f"w{i}", int(n), 1, (0,), 0, "g") for i, n in enumerate(drawn)]
    data = Dataset.from_dict({"input_ids": [np.zeros(n, np.int32) for n in drawn]})
    every = {"batch_size": WINDOWS, "keep_in_memory": True}  # all at once, as ours: by default it packs 1,000 at a time
    found = {}
    for name, pack in {
        "ours": lambda: len(plan(refs, 1, LONGEST, 1)[0]),
        "TRL bfd": lambda: len(pack_dataset(data, LONGEST, strategy="bfd", map_kwargs=every)),
        "TRL bfd, its default batches": lambda: len(
            pack_dataset(data, LONGEST, strategy="bfd", map_kwargs={"keep_in_memory": True})
        ),
    }.items():
        rows = pack()
        found[name] = {"rows": rows, "efficiency": float(drawn.sum() / (rows * LONGEST)), "seconds": fastest(pack)}
    return found


def show(found: dict[str, Any]) -> None:
    console = Console()
    table = Table("turns", "windows", "M tokens/s", "bare copy", "bar")
    for name, row in found["split"].items():
        numbers = [f"{row['windows']}", f"{row['tokens_per_s'] / 1e6:.0f}", f"{row['copy_tokens_per_s'] / 1e6:.0f}"]
        table.add_row(name, *numbers, f"{SPLIT_BAR / 1e6:.0f}")
    console.print(table)
    console.print({name: round(value, 1) for name, value in found["memory"].items()})
    table = Table("packer", "rows", "efficiency", "seconds", "bar")
    for name, row in found["pack"].items():
        table.add_row(name, f"{row['rows']}", f"{row['efficiency']:.4f}", f"{row['seconds']:.3f}", f"{PACK_BAR}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.0f}",
        "versions": {name: version(name) for name in ("numpy", "trl", "datasets")},
        "split": measure_split(),
        "memory": measure_memory(),
        "pack": measure_pack(),
    }
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
