"""The GPU benchmark's bookkeeping, without a GPU: both sides of the rollout are put the same requests."""

import asyncio
import json
import math
import threading

import numpy as np

from actors.agent import Agent
from actors.journal import MemoryJournal
from actors.scripted import ScriptedEngine
from benchmarks.gpu import models, publishing, rollout
from benchmarks.gpu.learner import make_windows
from benchmarks.gpu.turns import Turns
from klong_rl.config import AgentConfig
from klong_rl.windows import ContextRule


def test_the_requests_put_by_hand_are_those_the_agent_made(chat):
    scripted = ScriptedEngine(chat, ["cat amber", "cat cedar"])
    agent = Agent(AgentConfig(action_tokens=8), ContextRule(rollout.WINDOW, 256, 8), chat, scripted)
    spec, journal = rollout.episode(0), MemoryJournal()
    prefix_P = agent.prefix(spec)
    assert asyncio.run(agent.run(spec, prefix_P, rollout.InstantSandbox(), journal)).kind == "turn_limit"
    requests = rollout.requests_of(prefix_P, journal.turns)
    assert len(requests) == rollout.TURNS == len(scripted.contexts)
    for (context_T, n_tokens), asked_T, turn in zip(requests, scripted.contexts, journal.turns, strict=True):
        np.testing.assert_array_equal(context_T, asked_T)
        assert n_tokens == len(turn.action_A)


def test_a_part_has_its_turn_when_those_before_it_are_over(tmp_path):
    first, second = (Turns(tmp_path, ("first", "second"), name) for name in ("first", "second"))
    seen = []

    def measure(turns):
        with turns.alone():
            seen.append(turns.name)
            turns.write({"seen": list(seen)})

    waiting = threading.Thread(target=measure, args=(second,))
    waiting.start()
    measure(first)
    waiting.join(10)
    assert seen == ["first", "second"]
    assert json.loads((tmp_path / "second.json").read_text()) == {"seen": ["first", "second"]}


def test_a_gap_is_of_log_probs_and_its_ratios_are_truncated():
    theirs = np.zeros(4, np.float32)
    seen = publishing.gap(np.log(np.array([1.0, 1.0, 1.0, 5.0], np.float32)), theirs)
    assert seen["max"] == round(math.log(5), 4) and seen["mean"] == round(math.log(5) / 4, 5)
    assert (seen["ratio_max"], seen["ratio_mean"], seen["ratio_mean_truncated"]) == (5.0, 2.0, 1.25)
    assert seen["truncated_share"] == 0.25 and sum(seen["histogram"]["counts"]) == 4
    assert seen["ess_fraction"] == round(4 / 7, 4) < seen["ess_fraction_truncated"]


def test_half_or_all_of_a_window_s_tokens_are_targets():
    (half,), (whole,) = make_windows(1, 2048, 512), make_windows(1, 2048, None)
    assert (half.n_targets(), whole.n_targets()) == (1024, 2047)


def test_operations_are_counted_as_by_hand():
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    by_hand = 6 * (30 * layer + 576 * 49_152) + 6 * 30 * 576 * 2048
    assert models.flops_per_token("smollm2-135m", 2048) == by_hand
