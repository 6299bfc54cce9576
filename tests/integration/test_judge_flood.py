"""All episodes of a stage end at once: the first group's verdicts wait for its own leaves, not for the whole queue."""

from __future__ import annotations

import pytest

from benchmarks.judge_flood import Flood, compare

pytestmark = pytest.mark.integration

SMALL = Flood(groups=4, episodes=2, leaves=8, requests_per_s=100.0, concurrent=2, answers_in_s=0.005)


async def test_a_flood_is_judged_group_by_group():
    result = await compare(SMALL, seed=1)
    own = SMALL.episodes * SMALL.leaves
    ours, fifo = result["ours"]["order"], result["fifo"]["order"]
    assert sorted(ours) == sorted(fifo) == sorted(str(g) for g in range(SMALL.groups) for _ in range(own))
    assert last(ours, "0") < own + SMALL.concurrent + 1, "what was under way before it came, and its own"
    assert last(ours, "1") < 2 * own + SMALL.concurrent + 1
    assert last(fifo, "0") > 2 * own
    assert result["ours"]["refused"] == 0


def last(order: list[str], group: str) -> int:
    return max(i for i, each in enumerate(order) if each == group)
