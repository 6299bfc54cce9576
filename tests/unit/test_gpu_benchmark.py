"""The GPU benchmark's bookkeeping, without a GPU: both sides of the rollout are put the same requests."""

import asyncio

import numpy as np

from actors.agent import Agent
from actors.journal import MemoryJournal
from actors.scripted import ScriptedEngine
from benchmarks.gpu import engine, models
from benchmarks.gpu.learner import make_windows
from klong_rl.config import AgentConfig
from klong_rl.windows import ContextRule
from learners import batch


def test_the_requests_put_by_hand_are_those_the_agent_made(chat):
    scripted = ScriptedEngine(chat, ["cat amber", "cat cedar"])
    agent = Agent(AgentConfig(action_tokens=8), ContextRule(engine.WINDOW, 256, 8), chat, scripted)
    spec, journal = engine.episode(0), MemoryJournal()
    prefix_P = agent.prefix(spec)
    assert asyncio.run(agent.run(spec, prefix_P, engine.InstantSandbox(), journal)).kind == "turn_limit"
    requests = engine._requests(prefix_P, journal.turns)
    assert len(requests) == engine.TURNS == len(scripted.contexts)
    for (context_T, n_tokens), asked_T, turn in zip(requests, scripted.contexts, journal.turns, strict=True):
        np.testing.assert_array_equal(context_T, asked_T)
        assert n_tokens == len(turn.action_A)
    window = engine._window("w", prefix_P, journal.turns)
    np.testing.assert_array_equal(
        window.tokens_T[window.targets_T == 1], np.concatenate([turn.action_A for turn in journal.turns])
    )
    batch.collate([window], 16)


def test_half_or_all_of_a_window_s_tokens_are_targets():
    (half,), (whole,) = make_windows(1, 2048, 512), make_windows(1, 2048, None)
    assert (half.n_targets(), whole.n_targets()) == (1024, 2047)


def test_operations_are_counted_as_by_hand():
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    by_hand = 6 * (30 * layer + 576 * 49_152) + 6 * 30 * 576 * 2048
    assert models.flops_per_token("smollm2-135m", 2048) == by_hand
