"""A real vLLM engine that fetches its weights over the link (gloo), beside transformers."""

import asyncio

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from actors.engine import Engine, EngineBroken
from klong_rl.config import EngineConfig
from learners.link import LinkedWeights
from tests.engine_policy import DIFFERENT, EXACT, LONG, Policy, build, context

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 20.0


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
async def test_an_engine_is_what_the_learner_sent_under_requests_in_flight(tmp_path, monkeypatch, tied):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    build(tmp_path / "model", tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    config = EngineConfig(weight_transfer="network", transfer_timeout_s=DEADLINE_S)
    engine = await Engine.start(config, str(tmp_path / "model"), model.config.eos_token_id, version=1, seed=0)
    try:
        await _scene(Policy(engine, LinkedWeights(DEADLINE_S), {1: model}))
    finally:
        engine.shutdown()


async def _scene(policy):
    tokens_T = context(4, 100)
    before = await policy.engine.logprobs(tokens_T)
    np.testing.assert_allclose(before, policy.expected(tokens_T, 1), atol=EXACT)
    requests = [asyncio.create_task(policy.engine.sample(context(seed), LONG, 1.0)) for seed in range(4)]
    seed = 30
    while not all(request.done() for request in requests):
        await asyncio.sleep(0.1)
        version = await policy.publish(seed := seed + 1)
    for request in requests:
        sample = await request
        assert sum(count for _, count in sample.versions) == len(sample.tokens_A)
    after = await policy.engine.logprobs(tokens_T)
    np.testing.assert_allclose(after, policy.expected(tokens_T, version), atol=EXACT)
    assert np.abs(after - before).max() > DIFFERENT

    # A learner that is gone: the update fails midway, so nothing is sampled from this engine any more.
    torch.manual_seed(50)
    lost = policy.weights.publish(98, LlamaForCausalLM(policy.models[1].config).state_dict().items())
    policy.weights.publish(99, policy.models[1].state_dict().items())
    policy.weights.publish(100, policy.models[1].state_dict().items())
    with pytest.raises(EngineBroken, match="publishing version 98 failed midway.*version 98 is not here any more"):
        await policy.engine.publish(lost, 98)
    with pytest.raises(EngineBroken, match="version 98 failed midway"):
        await policy.engine.logprobs(tokens_T)
