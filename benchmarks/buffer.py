"""What the trajectory buffer costs: ours against the bare Redis under it and against other systems' ways, on this host.

    python benchmarks/buffer.py [--repetitions 15] [--segments 256] [--turns 1] [--most-episodes 100000] [--json OUT]

One process puts segments of 4,096 tokens and reads them back. All ways move the same segments in one run: ids int32,
log-probs float32, which tokens were sampled, and their policy versions. Those that use Redis use the same server (Unix
socket, append-only file synced each second) and an event loop of uvloop, as Ray's actors have. They are interleaved: a
repetition is one measurement of each, in an order that rotates. Ratios are of medians. What was read back is compared
with what was put, outside the timing. Then, in `buffer_growth.py`: what a transition costs with few and many episodes
held. Exits with 1 if a bar is missed.

TransferQueue is no requirement of the project: `make bench-buffer` installs conf/requirements/benchmarks.txt first.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import buffer_growth
import numpy as np
import ray
import redis
import uvloop
from buffer_ways import Ours, PickledLists, Raw, RawBlocking, RayObjects, Streams, TransferQueue, Way, ids_of
from rich.console import Console
from rich.table import Table

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.types import Segment, Turn

TOKENS = 4096  # a segment
SAMPLED = 7 / 8  # of them; the others are observation
VOCABULARY = 150_000
BATCH = 32  # segments a call
ONES = 64  # segments in a repetition of the ways that move one a call

# ours, rival, and how many times the rival's tokens a second ours must move
BARS = [
    ("ours, 32 a call", "raw SET/GET", 0.7),
    ("ours, 32 a call", "pickled lists (PipelineRL)", 4.0),
    ("ours, 32 a call", "TransferQueue, 32 a call", 2.0),
    ("ours, 1 a call", "TransferQueue, 1 a call", 10.0),
]


def make_segments(n: int, turns: int) -> list[Segment]:
    """Segments of one turn, as the rollout actor streams them, or of several; two versions in each turn."""
    rng = np.random.default_rng(0)
    length = TOKENS // turns
    sampled = int(length * SAMPLED)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, VOCABULARY, n, dtype=np.int32)

    def turn(index: int) -> Turn:
        return Turn(
            index=index,
            context_start=0,
            action_A=tokens(sampled),
            logprobs_A=-rng.random(sampled, dtype=np.float32),
            versions=((7, sampled // 2), (8, sampled - sampled // 2)),
            observation_O=tokens(length - sampled),
            command="ls -l",
            exit_code=0,
            seconds=1.5,
            chain=rng.bytes(16),
        )

    return [Segment(episode="", epoch=0, seq=0, turns=tuple(map(turn, range(turns)))) for _ in range(n)]


async def measure(way: Way, segments: list[Segment], batch: int, check: bool) -> tuple[float, float]:
    """Seconds for all puts, and for all gets."""
    prepared = [await way.prepare(segments[i : i + batch]) for i in range(0, len(segments), batch)]
    gc.collect()
    started = time.perf_counter()
    for one in prepared:
        await way.put(one)
    between = time.perf_counter()
    got = [await way.get(one) for one in prepared]
    ended = time.perf_counter()
    if check and not np.array_equal(np.concatenate([way.ids(one) for one in got]), ids_of(segments)):
        raise AssertionError(f"{type(way).__name__} gave back other tokens than it was given")
    return between - started, ended - between


async def compare(server: EmbeddedRedis, segments: list[Segment], repetitions: int) -> dict[str, dict[str, Any]]:
    buffer = await Buffer.connect(BufferAddress(server.url, "bench"))
    url, ours, queue, objects = server.url, Ours(buffer), TransferQueue(), RayObjects()
    ways: dict[str, tuple[Way, int]] = {
        "ours, 32 a call": (ours, BATCH),
        "raw SET/GET": (Raw(url), BATCH),
        "raw SET/GET, blocking client": (RawBlocking(url), BATCH),
        "bare XADD/XREAD": (Streams(url), BATCH),
        "pickled lists (PipelineRL)": (PickledLists(url), BATCH),
        "TransferQueue, 32 a call": (queue, BATCH),
        "Ray objects, 32 a call": (objects, BATCH),
        "ours, 1 a call": (ours, 1),
        "TransferQueue, 1 a call": (queue, 1),
        "Ray objects, 1 a call": (objects, 1),
    }
    names, taken = list(ways), {name: [] for name in ways}
    with redis.from_url(url) as admin:
        for repetition in range(-1, repetitions):  # the first one warms up, and is checked
            turn = repetition % len(names)
            for name in names[turn:] + names[:turn]:
                way, batch = ways[name]
                some = segments if batch > 1 else segments[:ONES]
                put_s, get_s = await measure(way, some, batch, check=repetition < 0)
                way.clear()
                admin.flushall()
                if repetition >= 0:
                    taken[name].append((put_s / len(some), get_s / len(some)))
    await buffer.close()
    return {name: summary(pairs) for name, pairs in taken.items()}


def summary(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Of (put, get) seconds a segment, one pair a repetition."""
    both = sorted(put_s + get_s for put_s, get_s in pairs)
    return {
        "tokens_per_s": TOKENS / statistics.median(both),
        "put_us": statistics.median(put_s for put_s, _ in pairs) * 1e6,
        "get_us": statistics.median(get_s for _, get_s in pairs) * 1e6,
        "quartiles_us": [both[len(both) // 4] * 1e6, both[3 * len(both) // 4] * 1e6],
    }


def setting(server: EmbeddedRedis, arguments: argparse.Namespace) -> dict[str, Any]:
    with redis.from_url(server.url) as client:
        server_version = client.info("server")["redis_version"]
    packages = ("redis", "ray", "TransferQueue", "msgspec", "numpy", "uvloop")
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "redis-server": server_version}
        | {name: version(name) for name in packages},
        "machine": {"cores": os.cpu_count(), "processor": processor(), "load": os.getloadavg()[0]},
        "arguments": {name: value for name, value in vars(arguments).items() if name != "json"},
    }


def processor() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(found: dict[str, Any]) -> bool:
    """Prints the tables; True if every bar is held."""
    console, rates = Console(), found["ways"]
    table = Table("4,096-token segments", "M tokens/s", "put, us", "get, us", title="Put and get together, medians")
    for name, one in rates.items():
        table.add_row(name, f"{one['tokens_per_s'] / 1e6:.2f}", f"{one['put_us']:.0f}", f"{one['get_us']:.0f}")
    console.print(table)
    table = Table("ours", "against", "ratio", "bar", "")
    held = True
    for ours, rival, least in BARS:
        ratio = rates[ours]["tokens_per_s"] / rates[rival]["tokens_per_s"]
        held &= ratio >= least
        table.add_row(ours, rival, f"{ratio:.2f}", f"{least:g}", "held" if ratio >= least else "MISSED")
    console.print(table)
    return buffer_growth.show(console, found["growth"]) and held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--segments", type=int, default=256, help="in a repetition of the ways that move 32 a call")
    parser.add_argument("--turns", type=int, default=1, help="in a segment")
    parser.add_argument("--most-episodes", type=int, default=100_000, help="held, when the transitions are timed")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    os.environ.setdefault("TQ_LOGGING_LEVEL", "ERROR")
    import transfer_queue

    # TransferQueue's controller and storage units ask for a core each, whatever the host has.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    segments = make_segments(arguments.segments, arguments.turns)
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
        with redis.from_url(server.url) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)  # lest a rewrite falls into one way's time
        transfer_queue.init()
        ways = uvloop.run(compare(server, segments, arguments.repetitions))
        transfer_queue.close()
        ray.shutdown()
        found = {"setting": setting(server, arguments), "ways": ways}
    found["growth"] = uvloop.run(buffer_growth.measure(arguments.most_episodes))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if show(found) else 1


if __name__ == "__main__":
    sys.exit(main())
