"""The load and the sums of benchmarks.async_vs_sync, and the token budget of benchmarks.token_stages."""

from itertools import islice
from statistics import median

import pytest

from benchmarks.async_report import compare
from benchmarks.slow_tools import LONGEST, tool_times
from benchmarks.token_stages import token_curriculum
from klong_rl.config import CurriculumConfig, StageConfig
from klong_rl.ledger import Ledger, TrainedStep


def first(n: int, seed: int, episode: str) -> list[float]:
    return list(islice(tool_times(2.0, seed, episode), n))


def test_tool_times_are_an_episode_s_own_and_have_a_heavy_tail():
    assert first(9, 0, "s1-g0-e0") == first(9, 0, "s1-g0-e0")
    assert first(9, 0, "s1-g0-e0") != first(9, 0, "s1-g0-e1") != first(9, 1, "s1-g0-e1")
    many = first(20_000, 0, "s1-g0-e0")
    assert median(many) == pytest.approx(2.0, rel=0.03)
    assert max(many) == LONGEST * 2.0
    assert 0.0005 < many.count(LONGEST * 2.0) / len(many) < 0.003, "three sigmas on one side: 0.00135"


def result(seed: int, step_s: float) -> dict:
    steps = [
        {"action_tokens": 100, "wait_s": step_s - 1, "learner_s": 0.75, "publish_s": 0.25, "reward_mean": 0.5}
        | {"episodes_finished": 8, "extras": {"staleness_mean": 0.5, "windows_stale": 0, "episodes_dropped": 0}}
        for _ in range(4)
    ]
    ends = {str(i + 1): 1000.0 + step_s * (i + 1) for i in range(4)}
    summary = {"extras": {"cold-s1": 0.25, "after-s1": 0.75}}
    ledger = [{"staleness_max": 1}]
    return {"seed": seed, "steps": steps, "step_ends_s": ends, "summary": summary, "ledger": ledger} | {
        "load_before": 0.0,
        "load_mean": 1.0,
    }


def test_a_rate_counts_from_where_the_first_step_began_to_wait():
    compared = compare({"ours-0": result(0, 2.0), "synchronous-0": result(0, 6.0), "ours-1": result(1, 2.0)})
    assert compared["sides"]["ours"][0]["tokens_per_hour"] == pytest.approx(100 / 2.0 * 3600)
    assert compared["sides"]["synchronous"][0]["learner_waits"] == pytest.approx(5 / 6)
    assert compared["sides"]["ours"][1]["episodes_per_hour"] == pytest.approx(8 / 2.0 * 3600)
    for rate in ("tokens_per_hour", "episodes_per_hour"):
        assert compared["ratios"]["synchronous"][rate]["of_medians"] == pytest.approx(3.0)
        assert compared["ratios"]["synchronous"][rate]["by_seed"] == {0: pytest.approx(3.0)}


def test_a_stage_ends_with_its_share_of_the_tokens(tmp_path):
    ledger = Ledger(tmp_path)
    curriculum = token_curriculum(tmp_path, 100)(CurriculumConfig(stages=[StageConfig(steps=50)] * 2))
    for step, (tokens, goes_to) in enumerate([(60, None), (60, 2), (60, None), (60, 0)], 1):
        ledger.write(
            TrainedStep(step=step, version=step, action_tokens=tokens, staleness_max=0, groups={f"g{step}": ["w"]})
        )
        curriculum.observe(None)
        move = curriculum.decide()
        assert (move.to if move else None) == goes_to
        if move:
            curriculum.enter(move)
    assert curriculum.finished
    ledger.close()
