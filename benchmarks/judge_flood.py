"""What does urgency save when all episodes of a stage end at once? `python -m benchmarks.judge_flood [--json OUT]`

    groups of episodes ── all end at the same moment ──▶ one grader ──▶ an endpoint of 20 requests/s (a test double)

Each episode has a rubric of its own leaves, and every group needs all its verdicts before it can be trained. The
endpoint gives its first answer when all leaves wait, so that the files' preparation counts on neither side. Two sides,
one after the other in one run, with the same episodes in the same shuffled order of arrival, on fresh stores:

    ours   by urgency: groups in order of admission
    FIFO   as they come: no group is more urgent than another

What the first group's own leaves need is their number by the endpoint's rate, the physical limit.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from klong_rl.config import EndpointConfig, JudgeConfig
from klong_rl.judging.lane import Urgency
from tests.fake_judge import FakeJudge
from tests.judged import Bench, finished, reward
from tests.unit.judging.trees import leaf, node

GATHERED_S = 60.0  # until all leaves wait
BAR = 1.3  # times what the first group's own leaves need


@dataclass(frozen=True)
class Flood:
    """The load: `groups` of `episodes`, each with `leaves`, at an endpoint of `requests_per_s`."""

    groups: int = 10
    episodes: int = 4
    leaves: int = 50
    requests_per_s: float = 20.0
    concurrent: int = 16
    answers_in_s: float = 0.2

    @property
    def own_s(self) -> float:
        """What the leaves of one group need, at the endpoint's rate."""
        return self.episodes * self.leaves / self.requests_per_s


class Text:
    """An episode's sandbox: one file."""

    def __init__(self, episode: str) -> None:
        self.episode = episode

    async def halt(self) -> None:
        pass

    async def exec(self, command: str, **_: Any) -> Any:
        return Listing()

    async def read(self, path: str, limit: int) -> bytes:
        return f"print({self.episode!r})\n".encode()


@dataclass
class Listing:
    """What `find` says of it."""

    exit_code: int = 0
    output: str = "./main.py\n"
    truncated: bool = False
    timed_out: bool = False
    interrupted: bool = False


async def side(flood: Flood, by_urgency: bool, seed: int) -> dict[str, Any]:
    """Seconds from the flood to each group's last verdict, and whose leaf each request was, as answered."""
    began = math.inf
    arrivals = list(itertools.product(range(flood.groups), range(flood.episodes)))
    random.Random(seed).shuffle(arrivals)
    done: dict[int, float] = {}
    async with FakeJudge(requests_per_s=flood.requests_per_s, takes_s=flood.answers_in_s) as fake:
        endpoint = EndpointConfig(
            url=fake.url, model="m", requests_per_s=flood.requests_per_s, concurrent=flood.concurrent
        )
        with tempfile.TemporaryDirectory() as folder:
            judge = JudgeConfig(endpoint=endpoint, wait_s=3600.0)
            bench = Bench(Path(folder), judge, reward("rubric.rubric"))
            fake.opened.clear()
            leaves = len(arrivals) * flood.leaves

            async def one(group: int, episode: int) -> None:
                name = f"g{group}-{episode}"
                tree = node("root", 1, *(leaf(f"{name}-{i}") for i in range(flood.leaves)))
                queue = f"g{group}" if by_urgency else "all"
                bench.grader.rank(queue, Urgency(True, False, group if by_urgency else 0))

                async def opened() -> Text:
                    return Text(name)

                await bench.grader.grade(finished(name, group=queue, rubric=tree), 1, opened, None)
                done[group] = time.monotonic() - began

            async with asyncio.TaskGroup() as tasks:
                for arrival in arrivals:
                    tasks.create_task(one(*arrival))
                async with asyncio.timeout(GATHERED_S):
                    while bench.grader.waiting + fake.under_way < leaves:
                        await asyncio.sleep(0.01)
                began = time.monotonic()
                fake.opened.set()
            await bench.grader.close()
        order = [body["messages"][1]["content"].split("Requirement:\nwhat g")[1].split("-")[0] for body in fake.asked]
    return {"groups_s": [done[group] for group in range(flood.groups)], "order": order, "refused": fake.refused}


async def compare(flood: Flood, seed: int = 0) -> dict[str, Any]:
    ours, fifo = await side(flood, True, seed), await side(flood, False, seed)
    return {"flood": asdict(flood), "own_s": flood.own_s, "ours": ours, "fifo": fifo}


def show(result: dict[str, Any], console: Console) -> None:
    flood, own_s = Flood(**result["flood"]), result["own_s"]
    console.print(f"{flood.groups * flood.episodes * flood.leaves} leaves at {flood.requests_per_s:g} requests/s")
    table = Table("", "first group, s", "its own leaves' time", "mean group, s", "last group, s", "429s")
    for name in ("ours", "fifo"):
        times = result[name]["groups_s"]
        row = (times[0], times[0] / own_s, sum(times) / len(times), max(times))
        first, ratio, mean, last = row
        cells = (f"{first:.1f}", f"{ratio:.2f} ×", f"{mean:.1f}", f"{last:.1f}", str(result[name]["refused"]))
        table.add_row(name, *cells)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    arguments = parser.parse_args()
    result = asyncio.run(compare(Flood()))
    show(result, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps(result))
    return 0 if result["ours"]["groups_s"][0] <= BAR * result["own_s"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
