"""A real vLLM engine against transformers in float32: log-probs, versions, new weights under requests in flight.

Everything is held for untied embeddings (nano) and for tied ones, whose output head vLLM keeps a packed copy of.
"""

import asyncio
import time

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from actors.engine import Engine, EngineFailure, Reading
from actors.weight_versions import NamedByVllm, Stamps
from klong_rl.config import EngineConfig
from learners.publish import WeightFolder
from tests.engine_policy import DIFFERENT, EXACT, LONG, Policy, build, context, tensors

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SOON_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["untied", "tied"])
async def policy(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / request.param
    build(folder, tied=request.param == "tied")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        engine = await Engine.start(EngineConfig(), str(folder), model.config.eos_token_id, version=1, seed=0)
    yield Policy(engine, WeightFolder(tmp_path_factory.mktemp("weights")), {1: model})
    engine.shutdown()


async def eventually(what: str, holds) -> None:
    until = time.monotonic() + SOON_S
    while not await holds():
        assert time.monotonic() < until, f"not within {SOON_S:.0f} s: {what}"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_sampled_tokens_come_with_the_log_probs_of_the_distribution_they_are_from(policy, temperature):
    contexts = [context(seed, 10 + seed) for seed in range(8)]
    samples = await asyncio.gather(*(policy.engine.sample(tokens, 24, temperature) for tokens in contexts))
    for before_T, sample in zip(contexts, samples, strict=True):
        expected = policy.expected(np.concatenate([before_T, sample.tokens_A]), policy.newest, temperature)
        np.testing.assert_allclose(sample.logprobs_A, expected[len(before_T) - 1 :], atol=EXACT)
        assert sample.versions == ((policy.newest, len(sample.tokens_A)),)
        assert (sample.finish == "length") == (len(sample.tokens_A) == 24)


async def test_scored_tokens_have_the_models_own_log_probs(policy):
    tokens_T = context(3, 120)
    np.testing.assert_allclose(
        await policy.engine.logprobs(tokens_T), policy.expected(tokens_T, policy.newest), atol=EXACT
    )


async def test_an_action_ends_with_the_end_of_turn_token_and_has_it(policy):
    end_id = policy.models[1].config.eos_token_id
    samples = await asyncio.gather(*(policy.engine.sample(context(seed), 200, 2.0) for seed in range(32)))
    stopped = [sample for sample in samples if sample.finish == "stop"]
    assert stopped
    assert all(sample.tokens_A[-1] == end_id and end_id not in sample.tokens_A[:-1] for sample in stopped)


async def test_an_answer_that_is_given_up_ends_as_far_as_it_came(policy):
    given_up, heard = asyncio.Event(), []

    def hear(text: str) -> None:
        heard.append(text)
        given_up.set()

    reading = Reading(special=True, hear=hear, give_up=given_up)
    sample = await policy.engine.sample(context(2), 200, 2.0, reading)
    assert sample.finish == "abort" and 0 < len(sample.tokens_A) < 200
    assert sample.text == "".join(heard)
    assert sample.versions == ((policy.newest, len(sample.tokens_A)),)
    whole_T = np.concatenate([context(2), sample.tokens_A])
    expected = policy.expected(whole_T, policy.newest, 2.0)[len(context(2)) - 1 :]
    np.testing.assert_allclose(sample.logprobs_A, expected, atol=EXACT)


async def test_an_answer_given_up_before_the_engine_knows_of_it_ends_too(policy):
    given_up = asyncio.Event()
    given_up.set()
    sample = await policy.engine.sample(context(3), 200, 2.0, Reading(give_up=given_up))
    assert sample.finish == "abort" and len(sample.tokens_A) == len(sample.logprobs_A) < 200


async def test_an_answer_ends_at_a_text_that_is_part_of_its_tokens_alone(policy):
    reading = Reading(stop=("a", "e", "o"))
    samples = await asyncio.gather(*(policy.engine.sample(context(s), 100, 2.0, reading) for s in range(8)))
    end_id = policy.models[1].config.eos_token_id
    stopped = [sample for sample in samples if sample.finish == "stop" and sample.tokens_A[-1] != end_id]
    assert stopped
    for seed, sample in enumerate(samples):
        assert not {"a", "e", "o"} & set(sample.text)
        whole_T = np.concatenate([context(seed), sample.tokens_A])
        expected = policy.expected(whole_T, policy.newest, 2.0)[len(context(seed)) - 1 :]
        np.testing.assert_allclose(sample.logprobs_A, expected, atol=EXACT)


async def test_published_weights_are_the_ones_that_answer(policy):
    tokens_T = context(4, 100)
    before, paused_s = await policy.engine.logprobs(tokens_T), policy.engine.paused_s()
    version = await policy.publish(seed=20)
    after = await policy.engine.logprobs(tokens_T)
    np.testing.assert_allclose(after, policy.expected(tokens_T, version), atol=EXACT)
    assert np.abs(after - before).max() > DIFFERENT
    assert await policy.engine.version() == version
    assert policy.engine.paused_s() > paused_s


async def test_a_request_in_flight_goes_on_and_each_part_is_its_versions_own(policy):
    contexts = [context(seed) for seed in range(4)]
    requests = [asyncio.create_task(policy.engine.sample(tokens, LONG, 1.0)) for tokens in contexts]
    seed = 30
    while not all(request.done() for request in requests):
        await asyncio.sleep(0.1)
        await policy.publish(seed := seed + 1)
    samples = [await request for request in requests]
    assert max(len(sample.versions) for sample in samples) >= 2
    for before_T, sample in zip(contexts, samples, strict=True):
        versions = [version for version, _ in sample.versions]
        assert versions == sorted(set(versions))
        assert sum(count for _, count in sample.versions) == len(sample.tokens_A) == len(sample.logprobs_A)
        whole_T, first = np.concatenate([before_T, sample.tokens_A]), 0
        for version, count in sample.versions:
            expected = policy.expected(whole_T, version)[len(before_T) - 1 :][first : first + count]
            np.testing.assert_allclose(sample.logprobs_A[first : first + count], expected, atol=EXACT)
            first += count


class Compared:
    """vLLM's own versions and ours, which must agree on every request."""

    def __init__(self, llm, version: int) -> None:
        self.theirs, self.ours = NamedByVllm(llm), Stamps(llm)
        self.ours._changes.append((time.monotonic(), version))
        self.most = 0

    async def set(self, version):
        await self.theirs.set(version)
        await self.ours.set(version)

    def take(self, request, answer):
        versions = self.theirs.take(request, answer)
        assert self.ours.take(request, answer) == versions
        self.most = max(self.most, len(versions))
        return versions


async def test_stamps_from_outside_are_those_that_vllm_gives_itself(policy, monkeypatch):
    llm = policy.engine._llm
    processor, seed = llm.output_processor, 60
    monkeypatch.setattr(processor, "process_outputs", processor.process_outputs)  # put back at the end
    compared = Compared(llm, policy.newest)
    monkeypatch.setattr(policy.engine, "_versions", compared)
    requests = [asyncio.create_task(policy.engine.sample(context(seed), LONG, 1.0)) for seed in range(8)]
    while not all(request.done() for request in requests):
        await asyncio.sleep(0.1)
        await policy.publish(seed := seed + 1)
    assert all([(await request).versions for request in requests])
    assert compared.most >= 2


async def test_a_cancelled_call_leaves_no_request_behind(policy):
    llm = policy.engine._llm
    requests = [asyncio.create_task(policy.engine.sample(context(seed), LONG, 1.0)) for seed in range(4)]
    await eventually("requests under way", lambda: _holds_cache(llm))
    for request in requests:
        request.cancel()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(result, asyncio.CancelledError) for result in results)
    assert not llm.output_processor.has_unfinished_requests()
    await eventually("no request in the engine's process", lambda: _holds_no_cache(llm))


async def _holds_no_cache(llm) -> bool:
    return await llm.reset_prefix_cache()  # refused as long as a request holds a block of it


async def _holds_cache(llm) -> bool:
    return not await _holds_no_cache(llm)


@pytest.mark.parametrize("damage", ["absent", "cut short"])
async def test_weights_that_cannot_be_read_are_refused_and_the_old_ones_go_on(policy, damage, tmp_path):
    path = tmp_path / "weights.safetensors"
    if damage == "cut short":
        save_file(tensors(policy.models[1]), path)
        path.write_bytes(path.read_bytes()[:-1000])
    tokens_T = context(5, 80)
    with pytest.raises(EngineFailure, match=f"version 999 not published.*{path}"):
        await policy.engine.publish({"path": str(path)}, 999)
    assert await policy.engine.version() == policy.newest
    np.testing.assert_allclose(
        await policy.engine.logprobs(tokens_T), policy.expected(tokens_T, policy.newest), atol=EXACT
    )
    version = await policy.publish(seed=40)
    assert (await policy.engine.sample(context(6), 4, 1.0)).versions[0][0] == version


async def test_an_engine_tells_what_it_can_hold_and_what_waits(policy):
    load, contexts = policy.engine.load, [context(seed) for seed in range(80)]
    assert load.fits == EngineConfig().max_num_seqs == 64, "the cache holds more contexts than are sampled at once"
    under_way = asyncio.gather(*(policy.engine.sample(each, LONG, 1.0) for each in contexts))
    async with asyncio.timeout(60.0):  # the first step of so many takes a busy machine its time
        while load.waiting == 0:
            await asyncio.sleep(0.01)
    assert load.waiting <= 80 - 64 and 0 < load.kv_use < 0.5
    await under_way
    assert load.waiting == 0


# The last one: there is no way back for this engine.
async def test_an_engine_with_nothing_to_do_leaves_the_cores_to_others(policy):
    """As vLLM has it, its worker keeps a core busy for a second after each token."""
    await policy.engine.sample(context(3), 4, 1.0)
    before, began = cpu_seconds(), time.monotonic()
    await asyncio.sleep(0.8)
    assert cpu_seconds() - before < 0.25 * (time.monotonic() - began)


def cpu_seconds() -> float:
    """Of this process's descendants, the engine's among them."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


async def test_an_update_that_fails_midway_ends_every_request_and_refuses_all_others(policy, tmp_path):
    tied = policy.models[1].config.tie_word_embeddings  # each engine can be broken once: a whole layer, part of one
    lacking = "model.norm.weight" if tied else "model.layers.2.self_attn.k_proj.weight"
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(50)
    model = LlamaForCausalLM(policy.models[1].config)
    save_file({name: tensor for name, tensor in tensors(model).items() if name != lacking}, path)
    in_flight = [asyncio.create_task(policy.engine.sample(context(seed), 200, 1.0)) for seed in range(4)]
    await eventually("requests under way", lambda: _holds_cache(policy.engine._llm))
    with pytest.raises(EngineFailure, match=r"publishing version 999 failed midway.*lacks"):
        await policy.engine.publish({"path": str(path)}, 999)
    ended = await asyncio.wait_for(asyncio.gather(*in_flight, return_exceptions=True), SOON_S)
    assert any(isinstance(end, EngineFailure) for end in ended)
    for call in (
        policy.engine.sample(context(1), 4, 1.0),
        policy.engine.logprobs(context(1)),
        policy.engine.publish({"path": str(path)}, 1000),
    ):
        with pytest.raises(EngineFailure, match="version 999 failed midway"):
            await call
