"""Rollout, publish and agreement: an engine and a learner on one GPU, as `cluster=one_gpu` sets them up.

rollout   64 agent loops at once (the real Agent, an instant sandbox) against the same requests, token for token as
          long, put to the same vLLM by hand: each episode's next one as soon as its last is answered
publish   from the learner's export to resumed generation, under 64 requests in flight; the floor is the bytes that
          have to be copied (learner to staging, staging to engine) over the copy bandwidth measured beside it
gap       |learner - engine| of log-probs on what was sampled, with both sides in bfloat16
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.agent import Agent
from actors.engine import Engine
from actors.journal import MemoryJournal
from benchmarks.gpu.learner import start_rank
from klong_rl.buffer import WindowRef
from klong_rl.chain import context
from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig, EngineConfig
from klong_rl.types import EpisodeSpec, Task, Turn, Window
from klong_rl.windows import ContextRule
from learners import batch
from sandboxes.base import ExecResult

EPISODES, TURNS, ACTION, WINDOW = 64, 2, 256, 2048
ROUNDS = 2  # of each side, in turns
IN_FLIGHT = 512  # tokens of an answer that a publish comes in the middle of
PUBLISHES = 4


class InstantSandbox:
    """Answers at once."""

    async def exec(self, command: str, timeout_s: float) -> ExecResult:
        return ExecResult(exit_code=0, stdout=b"digit 7\n", truncated=False, timed_out=False, seconds=0.0)


def episode(index: int) -> EpisodeSpec:
    task = Task(id=f"bench/{index}", family="bench", instruction="Follow the clues.", image="")
    return EpisodeSpec(
        id=f"e{index}",
        group="g",
        group_size=1,
        stage=1,
        purpose="train",
        task=task,
        timeout_s=600.0,
        max_turns=TURNS,
    )


async def measure(name: str, folder: Path, token_budget: int) -> dict[str, Any]:
    """All of it for one model: 0.4 of the GPU for the engine, 0.55 for the learner."""
    rank = start_rank(folder, token_budget, 0.55)
    config = EngineConfig(
        dtype="bfloat16",
        max_model_len=WINDOW,
        max_num_seqs=EPISODES,
        enforce_eager=False,
        weight_transfer="ipc",
        gpu_memory=0.4,
        extra={"attention_backend": "FLASH_ATTN"},
    )
    chat = ChatFormat(folder)
    began = time.monotonic()
    engine = await Engine.start(config, str(folder), chat.end_id, version=0, seed=0)
    result: dict[str, Any] = {"model": name, "engine_start_s": round(time.monotonic() - began, 1)}
    try:
        result["rollout"], windows = await rollout(engine, chat)
        result["gap_before_any_publish"] = await gap(engine, rank, windows)
        result["publish"] = await publish(engine, rank, windows)
        result["gap_after_training_and_publish"] = await gap(engine, rank, windows)
    finally:
        engine.shutdown()
    return result


async def rollout(engine: Engine, chat: ChatFormat) -> tuple[dict[str, Any], list[Window]]:
    """Tokens/s of both sides, and what ours sampled last, as windows."""
    rule = ContextRule(WINDOW, 256, ACTION)
    agent = Agent(AgentConfig(action_tokens=ACTION), rule, chat, engine)
    ours, bare = [], []
    for round_ in range(ROUNDS + 1):  # the first warms up
        prefixes, journals = [], []
        await engine._llm.reset_prefix_cache()
        began, before = time.perf_counter(), engine.sampled_tokens
        for index in range(EPISODES):
            spec = episode(index)
            prefixes.append(agent.prefix(spec))
            journals.append(MemoryJournal())
        runs = (agent.run(episode(i), prefixes[i], InstantSandbox(), journals[i]) for i in range(EPISODES))
        await asyncio.gather(*runs)
        if round_:
            ours.append((engine.sampled_tokens - before) / (time.perf_counter() - began))
        requests = [_requests(prefix, journal.turns) for prefix, journal in zip(prefixes, journals, strict=True)]
        await engine._llm.reset_prefix_cache()
        began = time.perf_counter()
        counts = await asyncio.gather(*(_by_hand(engine._llm, chain) for chain in requests))
        if round_:
            bare.append(sum(counts) / (time.perf_counter() - began))
    windows = [_window(f"w{i}", p, j.turns) for i, (p, j) in enumerate(zip(prefixes, journals, strict=True))]
    rates = {"ours": statistics.median(ours), "bare": statistics.median(bare)}
    return {
        "episodes": EPISODES,
        "turns": TURNS,
        "action_tokens": ACTION,
        "ours_tokens_per_s": [round(rate) for rate in ours],
        "bare_tokens_per_s": [round(rate) for rate in bare],
        "ours_over_bare": round(rates["ours"] / rates["bare"], 3),
    }, windows


def _requests(prefix_P: np.ndarray, turns: list[Turn]) -> list[tuple[np.ndarray, int]]:
    """What was asked for each turn, and how many tokens came."""
    return [(context(prefix_P, turns[t.context_start : t.index]), len(t.action_A)) for t in turns]


async def _by_hand(llm: Any, requests: list[tuple[np.ndarray, int]]) -> int:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    total = 0
    for context_T, n_tokens in requests:
        params = SamplingParams(
            temperature=1.0,
            max_tokens=n_tokens,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in llm.generate(TokensPrompt(prompt_token_ids=context_T.tolist()), params, uuid.uuid4().hex):
            total += len(output.outputs[0].token_ids)
    return total


def _window(name: str, prefix_P: np.ndarray, turns: list[Turn]) -> Window:
    """A whole short episode: its actions are the targets."""
    parts = [(prefix_P, None)]
    for turn in turns:
        parts += [(turn.action_A, turn.logprobs_A), (turn.observation_O, None)]
    zeros = [np.zeros(len(tokens), np.float32) if logprobs is None else logprobs for tokens, logprobs in parts]
    targets_T = np.concatenate([np.full(len(tokens), logprobs is not None, np.uint8) for tokens, logprobs in parts])
    return Window(
        id=name,
        episode=name,
        group="g",
        stage=1,
        tokens_T=np.concatenate([tokens for tokens, _ in parts]),
        targets_T=targets_T,
        logprobs_T=np.concatenate(zeros),
        versions=((0, int(targets_T.sum())),),
        advantage=1.0,
    )


def _share(rank: Any, windows: list[Window]) -> tuple[list[list[str]], dict[str, Window]]:
    given = {window.id: window for window in windows}
    budget = rank._job.learner.token_budget
    return batch.plan([WindowRef.of(w) for w in windows], 1, budget, rank._job.pad_to)[0], given


async def gap(engine: Engine, rank: Any, windows: list[Window]) -> dict[str, Any]:
    """On the windows' targets, scored by the engine now: prefill, under the weights it has."""
    ours = rank.logprobs(1.0, *_share(rank, windows))
    theirs = await asyncio.gather(*(engine.logprobs(window.tokens_T) for window in windows))
    difference = np.concatenate(
        [
            np.abs(ours[window.id][1:] - their)[window.targets_T[1:] == 1]
            for window, their in zip(windows, theirs, strict=True)
        ]
    )
    quantiles = {f"p{q}": round(float(np.percentile(difference, q)), 4) for q in (50, 90, 99)}
    return {
        "tokens": difference.size,
        "mean": round(float(difference.mean()), 4),
        **quantiles,
        "max": round(float(difference.max()), 3),
    }


async def publish(engine: Engine, rank: Any, windows: list[Window]) -> dict[str, Any]:
    """Seconds of each part, under requests in flight, of which none may end early."""
    share, given = _share(rank, windows)
    prompts = [window.tokens_T[:64] for window in windows]
    exports, pauses, ends = [], [], []
    for version in range(1, PUBLISHES + 1):
        requests = [asyncio.create_task(engine.sample(prompt, IN_FLIGHT, 1.0)) for prompt in prompts]
        rank.sft_step(share, given)
        await asyncio.sleep(0.5)
        began = time.perf_counter()
        weights = rank.publish(version)
        exports.append(time.perf_counter() - began)
        pauses.append(await engine.publish(weights, version))
        samples = await asyncio.gather(*requests)
        ends += [len(sample.versions) for sample in samples]
    size = sum(tensor.numel() * tensor.element_size() for tensor in rank._weights._copies[0].values())
    bandwidth = _copy_bandwidth(size)
    totals = [a + b for a, b in zip(exports, pauses, strict=True)]
    return {
        "bytes": size,
        "export_s": [round(s, 4) for s in exports],
        "pause_s": [round(s, 4) for s in pauses],
        "median_s": round(statistics.median(totals), 4),
        "floor_s": round(2 * size / bandwidth, 5),
        "copy_gb_per_s": round(bandwidth / 1e9),
        "requests": len(ends),
        "requests_of_two_versions": sum(count > 1 for count in ends),
    }


def _copy_bandwidth(size: int) -> float:
    """Bytes copied a second, device to device, of a tensor of `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * size / (time.perf_counter() - began)
