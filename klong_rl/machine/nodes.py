"""The nodes of a Ray cluster: the facts of each, gathered there, and how far its clock is from this one's."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from klong_rl.machine.facts import Clock, Facts

NODE_S = 300.0  # for one node's facts: its worker starts, its Docker answers, its pair test runs
TRIES = 5  # readings of a clock; the one that took least says most


class NodeFailure(Exception):
    """A node didn't answer."""


def gather_nodes(address: str, **asked: Any) -> dict[str, Facts]:
    """By node. Joins the Ray cluster at `address` and leaves it again. Raises NodeFailure; ImportError without Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NodeFailure(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    try:
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        doubled = len(set(names.values())) < len(names)
        actors = {
            f"{name} ({node[:6]})" if doubled else name: ray.remote(Visitor)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote()
            for node, name in names.items()
        }
        calls = {name: actor.gather.remote(asked) for name, actor in actors.items()}
        found = {name: _answer(ray, name, call) for name, call in calls.items()}
        clocks = tuple(read_clock(name, lambda a=actor: ray.get(a.time.remote())) for name, actor in actors.items())
    finally:
        ray.shutdown()
    first = next(iter(found))
    return found | {first: replace(found[first], clocks=clocks)}


class Visitor:
    """On a node, as a Ray actor."""

    def gather(self, asked: dict[str, Any]) -> Facts:
        from klong_rl.machine.gather import gather

        return gather(**asked)

    def time(self) -> float:
        return time.time()


def read_clock(node: str, ask: Any, clock: Any = time.time) -> Clock:
    """How far the clock that `ask` reads is ahead: as of the middle of the quickest of TRIES readings (Cristian)."""
    readings = []
    for _ in range(TRIES):
        before, there, after = clock(), ask(), clock()
        readings.append(((after - before) / 2, there - (before + after) / 2))
    doubt, ahead = min(readings)
    return Clock(node, ahead, doubt)


def _answer(ray: Any, name: str, call: Any) -> Facts:
    try:
        return ray.get(call, timeout=NODE_S)
    except ray.exceptions.GetTimeoutError as error:
        raise NodeFailure(f"node {name} didn't tell its facts within {NODE_S:g} s") from error
    except ray.exceptions.RayError as error:
        raise NodeFailure(f"node {name} can't be asked: {str(error).splitlines()[0]}") from error
