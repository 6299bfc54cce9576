"""A vLLM engine beside a learner on one GPU: weights by CUDA IPC, requests in flight, versions, agreement."""

import asyncio
import time

import numpy as np
import pytest

from actors.engine import Engine
from klong_rl.chat import ChatFormat
from klong_rl.config import EngineConfig
from tests.gpu.test_learner import logprobs, share

LONG = 600  # tokens
MEAN, MAX = 0.05, 0.6  # nats between two bfloat16 implementations
DIFFERENT = 0.3


def scored(engine, windows):
    async def all_of_them():
        return await asyncio.gather(*(engine.logprobs(window.tokens_T) for window in windows))

    return all_of_them()


def gap_of(theirs, ours, windows):
    return np.concatenate(
        [
            np.abs(their[window.targets_T[1:] > 0] - ours[window.id])
            for their, window in zip(theirs, windows, strict=True)
        ]
    )


@pytest.mark.timeout(400)
def test_an_engine_takes_the_learner_s_weights_under_requests_in_flight(make_rank, folder, windows):
    asyncio.run(_scene(make_rank("bfloat16"), folder, windows))


async def _scene(rank, folder, windows):
    config = EngineConfig(
        dtype="bfloat16",
        max_model_len=2048,
        weight_transfer="ipc",
        gpu_memory=0.4,
        extra={"attention_backend": "FLASH_ATTN"},
    )
    began = time.monotonic()
    engine = await Engine.start(config, str(folder), ChatFormat(folder).end_id, version=1, seed=0)
    print(f"\nengine ready in {time.monotonic() - began:.0f} s")
    try:
        await _publish_and_compare(engine, rank, windows)
        await _publish_in_flight(engine, rank, windows)
    finally:
        engine.shutdown()


async def _publish_and_compare(engine, rank, windows):
    first = gap_of(await scored(engine, windows), logprobs(rank, windows), windows)
    print(f"before: mean {first.mean():.4f}, max {first.max():.3f}")
    before = await engine.logprobs(windows[0].tokens_T)
    for _ in range(10):
        rank.sft_step(share(rank, windows), {window.id: window for window in windows})
    paused = (await engine.publish(rank.publish(2), 2))["paused_s"]
    after = gap_of(await scored(engine, windows), logprobs(rank, windows), windows)
    print(f"after a publish of {paused:.3f} s: mean {after.mean():.4f}, max {after.max():.3f}")
    assert max(first.mean(), after.mean()) < MEAN and max(first.max(), after.max()) < MAX
    assert np.abs(await engine.logprobs(windows[0].tokens_T) - before).max() > DIFFERENT
    assert await engine.version() == 2


async def _publish_in_flight(engine, rank, windows):
    requests = [asyncio.create_task(engine.sample(window.tokens_T[:24], LONG, 1.0)) for window in windows]
    version, paused = 2, []
    while not all(request.done() for request in requests):
        await asyncio.sleep(0.3)
        rank.sft_step(share(rank, windows), {window.id: window for window in windows})
        version += 1
        began = time.monotonic()
        weights = rank.publish(version)
        written = time.monotonic()
        paused.append((written - began, (await engine.publish(weights, version))["paused_s"]))
    samples = [await request for request in requests]
    print("publishes in flight (export, pause):", [f"{a:.3f}, {b:.3f}" for a, b in paused])
    print("versions of the first request:", samples[0].versions)
    assert max(len(sample.versions) for sample in samples) >= 2
    for sample in samples:
        assert sum(count for _, count in sample.versions) == len(sample.tokens_A)
        versions = [v for v, _ in sample.versions]
        assert versions == sorted(versions)
