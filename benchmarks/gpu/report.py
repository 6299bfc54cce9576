"""The figures of a run as a table, with the bar that each is held to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BARS = {"rollout": 0.95, "learner": 0.97, "publish_s": 0.5, "memory": 0.1}


def table(results: dict[str, Any]) -> str:
    lines = [("what", "ours", "rival or limit", "ratio", "bar"), *_rows(results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if check := results.get("correctness"):
        yield "correctness", "passed" if check["passed"] else "FAILED", "", "", "passed"
    for part, result in sorted(results.items()):
        kind, _, model = part.partition("-")
        if kind == "rollout":
            yield from _rollout(model, result, results.get(f"generate-{model}"))
        elif kind == "learner":
            for step in result:
                yield from _learner(step)
        elif kind == "publish":
            yield from _publish(result)


def _rollout(model: str, ours: dict[str, Any], generate: dict[str, Any] | None) -> Iterator[tuple[str, ...]]:
    rate = sorted(ours["ours_tokens_per_s"])[len(ours["ours_tokens_per_s"]) // 2]
    by_hand = sorted(ours["by_hand_tokens_per_s"])[len(ours["by_hand_tokens_per_s"]) // 2]
    bar = f"{BARS['rollout']}"
    yield f"{model} tokens/s, AsyncLLM by hand", f"{rate}", f"{by_hand}", f"{ours['ours_over_by_hand']}", bar
    if generate:
        ratio = f"{rate / generate['median']:.3f}"
        yield f"{model} tokens/s, LLM.generate", f"{rate}", f"{generate['median']:.0f}", ratio, bar


def _learner(step: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    what = f"{step['model']} step, {step['rows']} x {step['row']}"
    for pair, ratio in step["over_bare"].items():
        ours, bare = pair.split(" over ")
        rates = [f"{step[side]['tokens_per_s']} tok/s, MFU {step[side]['mfu']}" for side in (ours, bare)]
        yield f"{what}: {pair}", *rates, f"{ratio}", f"{BARS['learner']}"
    memory = step["memory"]
    parts = f"{memory['peak_gib']} GiB", f"{memory['predicted_gib']} GiB predicted"
    yield f"{what}: memory", *parts, f"{memory['peak_over_predicted']}", "within 10 %"


def _publish(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for which in ("decode", "prefill"):
        seen = result["agreement"][which]
        yield f"gap, {which}", f"mean {seen['mean']}, max {seen['max']}", "", "", ""
    if seen := result.get("publish"):
        ours, floor = f"{seen['median_s']} s, at most {seen['largest_s']}", f"{seen['floor_s']} s to copy"
        yield f"{result['model']} publish", ours, floor, "", f"{BARS['publish_s']} s"
