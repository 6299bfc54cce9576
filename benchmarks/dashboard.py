"""How long the page of a run takes to load, with up to 100,000 episodes in it, and how it scrolls 2,000,000 tokens.

    python -m benchmarks.dashboard [--rounds 7] [--json OUT]

Real runs on disk, the real server as a process of its own, a real headless Chromium with an empty cache for each load.

    load        from the address to the table of episodes with its first 100 rows; beside it the same page of a run with
                100 episodes, which is what server, browser and page cost by themselves
    first load  as soon as the server listens, while it still reads the archive
    read        from the start of the server until every episode is in the table; beside it the time in which the same
                columns are read and nothing is made of them (pyarrow)
    open        a trajectory of 1,000 turns and 2,000,000 tokens, from the table's click to its first turn
    scroll      through that trajectory, a screen every 8 frames, all of it: seconds between two frames, beside those of
                the same browser when nothing moves
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.machine import about
from klong_rl.buffer.archive import SCHEMA, rows_of
from klong_rl.dashboard.index import READ
from klong_rl.windows import ContextRule
from tests.browser import Page, browser
from tests.made_runs import RunMaker, Said

SIZES = (100, 10_000, 100_000)
A_FILE = 512  # episodes of 8 turns: what the archive puts into one file
TURNS = 8
LONG_TURNS, LONG_ACTION, LONG_OBSERVATION = 1000, 500, 1500
SCREEN_FRAMES = 8
MARK = "NNNNNN"  # in the names of the file that the others are copies of


def many_episodes(run_dir: Path, count: int) -> int:
    """A run with `count` episodes or a few more, whole files of them, of TURNS turns, in groups of 8; how many."""
    maker = RunMaker(run_dir)
    maker.steps()
    command, output = "sed -n '10,19p' main.c", "a line of a file that was read\n" * 8
    said = [Said(command * 3, command, output)] * TURNS
    n = min(count, A_FILE)
    groups = [
        maker.group(f"s1-{MARK}-{g}", [said] * min(8, n - 8 * g), stage=1 + g % 3, step=1) for g in range(-(-n // 8))
    ]
    table = pa.Table.from_pylist([row for group in groups for row in rows_of(group)], SCHEMA)
    maker.files.folder.mkdir()
    for number in range(-(-count // A_FILE)):
        copy = table
        for name in ("group", "episode", "window"):
            column = pc.replace_substring(table[name], MARK, f"{number:06d}")
            copy = copy.set_column(copy.column_names.index(name), SCHEMA.field(name), column)
        pq.write_table(copy, maker.files.folder / f"groups-{number + 1:06d}.parquet", compression="zstd")
    return n * -(-count // A_FILE)


def long_episode(run_dir: Path) -> None:
    """A run with one episode of 2,000,000 tokens, sampled in contexts of 32,768."""
    maker = RunMaker(run_dir)
    maker.steps()
    words = "the quick brown fox jumps over the lazy dog and reads a file ".split()
    random = np.random.default_rng(0)

    def text(n: int) -> str:
        lines = "".join(f"{words[i]} " if i else "\n" for i in random.integers(0, len(words), n // 3))
        return (lines * 2)[:n]

    said = [Said(text(LONG_ACTION), f"run {i}", text(LONG_OBSERVATION), int(i % 5 == 4)) for i in range(LONG_TURNS)]
    rule = ContextRule(max_tokens=32768, overlap_tokens=4096, action_tokens=1024)
    group = maker.group("long", [said], rule=rule)
    maker.files.write([group])
    maker.keep_learned(group)


@asynccontextmanager
async def served(run_dir: Path) -> AsyncIterator[str]:
    command = (sys.executable, "-m", "klong_rl.dashboard", f"run={run_dir}", "port=0")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield line.decode().split("dashboard: ")[1].strip()
    finally:
        process.terminate()
        await process.wait()


async def load(page: Page, base: str, rows: int) -> float:
    """Seconds, with an empty cache."""
    await page.goto("about:blank")
    await page.call("Network.clearBrowserCache")
    began = time.perf_counter()
    await page.goto(base + "#/episodes")
    await page.until(f"document.querySelectorAll('[data-testid=rows] tbody tr').length >= {rows}", 120)
    return time.perf_counter() - began


async def all_read(base: str, count: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(300):
        while True:
            async with session.get(base + "api/episodes?limit=1") as answer:
                if (await answer.json())["of"] == count:
                    return
            await asyncio.sleep(0.05)


async def loads(page: Page, run_dir: Path, count: int, rounds: int) -> dict[str, float]:
    first, read, later = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        async with served(run_dir) as base:
            first.append(await load(page, base, 100))
            await all_read(base, count)
            read.append(time.perf_counter() - began)
            later.append(await load(page, base, 100))
    bare = []
    for _ in range(rounds):
        began = time.perf_counter()
        for path in sorted((run_dir / "archive").glob("*.parquet")):
            pq.read_table(path, columns=list(READ))
        bare.append(time.perf_counter() - began)
    return {
        "first_load_s": median(first),
        "load_s": median(later),
        "load_worst_s": max(first + later),
        "read_s": median(read),
        "columns_s": median(bare),
    }


FRAMES = """
(async () => {
  const view = document.querySelector('.virtual');
  const frames = [];
  let last = performance.now();
  const frame = () => new Promise((done) => requestAnimationFrame((now) => {
    frames.push(now - last);
    last = now;
    done();
  }));
  await frame();
  frames.length = 0;
  const step = STEP * view.clientHeight;
  let most = 0;
  for (let n = 0; n < MOST && (step === 0 || view.scrollTop + view.clientHeight < view.scrollHeight - 2); n++) {
    view.scrollTop += step;
    most = Math.max(most, document.querySelectorAll('.virtual .t').length);
    await frame();
  }
  return JSON.stringify({ frames, most, turn: document.querySelector('.turn:last-child') ? view.scrollTop : 0 });
})()
"""


async def frames(page: Page, step: float, most: int) -> dict[str, Any]:
    found = json.loads(await page.run(FRAMES.replace("STEP", str(step)).replace("MOST", str(most))))
    gaps = np.array(found["frames"])
    quantiles = {f"p{q}_ms": float(np.percentile(gaps, q)) for q in (50, 95, 99)}
    over = float((gaps > 50).mean())
    return quantiles | {"worst_ms": float(gaps.max()), "over_50_ms": over, "frames": len(gaps), "tokens": found["most"]}


async def trajectory(page: Page, run_dir: Path, rounds: int) -> dict[str, Any]:
    opened: list[float] = []
    async with served(run_dir) as base:
        await all_read(base, 1)
        for _ in range(rounds):
            await load(page, base, 1)
            began = time.perf_counter()
            await page.click("[data-testid=rows] tbody a")
            await page.until("!!document.querySelector('[data-testid=turn-0] .tokens .t')", 60)
            opened.append(time.perf_counter() - began)
        await asyncio.sleep(1)
        still = await frames(page, 0.0, 300)
        moving = await frames(page, 1 / SCREEN_FRAMES, 100_000)
        await page.until(f"!!document.querySelector('[data-testid=turn-{LONG_TURNS - 1}] .tokens .t')", 60)
    return {"first_open_s": opened[0], "open_s": median(opened), "still": still, "scroll": moving}


async def measure(folder: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"about": about(), "rounds": rounds, "loads": {}}
    (folder / "chromium").mkdir()
    async with browser(folder / "chromium") as page:
        await page.call("Network.enable")
        for count in SIZES:
            made = many_episodes(folder / str(count), count)
            found["loads"][made] = await loads(page, folder / str(count), made, rounds)
        long_episode(folder / "long")
        found["trajectory"] = await trajectory(page, folder / "long", rounds)
    return found


def show(found: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="seconds, medians")
    for name in ("episodes", "first load", "load", "worst load", "all read", "the columns alone"):
        table.add_column(name, justify="right")
    for count, row in found["loads"].items():
        table.add_row(f"{count:,}", *(f"{value:.2f}" for value in row.values()))
    console.print(table)
    long = found["trajectory"]
    console.print(f"2,000,000 tokens: opened in {long['first_open_s']:.2f} s, again in {long['open_s']:.2f} s")
    table = Table(title="milliseconds between two frames")
    for name in ("", "p50", "p95", "p99", "worst", "over 50 ms", "frames", "tokens in the page"):
        table.add_column(name, justify="right")
    for name in ("still", "scroll"):
        row = long[name]
        numbers = [f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "worst_ms")]
        table.add_row(name, *numbers, f"{row['over_50_ms']:.1%}", str(row["frames"]), str(row["tokens"]))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="klong-dashboard-") as folder:
        found = asyncio.run(measure(Path(folder), given.rounds))
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
