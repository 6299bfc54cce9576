"""What the agent loop's requests cost, sampled by our engine and put to vLLM by hand.

ours        64 agent loops at once: the real Agent and Engine, a sandbox that answers at once
by hand     the same requests, token for token as long, put to the same AsyncLLM: each episode's next one as soon as
            its last is answered
generate    the same requests to vLLM's LLM.generate with the same engine arguments, a turn of all episodes at a time
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from actors.agent import Agent
from actors.engine import Engine
from actors.journal import MemoryJournal
from klong_rl.branches import context_of
from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig, EngineConfig
from klong_rl.types import EpisodeSpec, Task, Turn, Window
from klong_rl.windows import ContextRule, split
from sandboxes.base import ExecResult

EPISODES, TURNS, ACTION, WINDOW = 64, 2, 256, 2048
BATCHED = 8192
ROUNDS = 3  # of each side, in turns, after one that warms up
Requests = list[list[tuple[np.ndarray, int]]]  # [episode][turn]: context, tokens to sample


class InstantSandbox:
    """Answers at once."""

    async def exec(self, command: str, timeout_s: float) -> ExecResult:
        return ExecResult(exit_code=0, stdout=b"digit 7\n", truncated=False, timed_out=False, seconds=0.0)


def engine_config(cache_gib: int) -> EngineConfig:
    """`cache_gib` of KV cache: what vLLM measures of a GPU is wrong where others start on it at the same time."""
    return EngineConfig(
        dtype="bfloat16",
        max_model_len=WINDOW,
        max_num_seqs=EPISODES,
        enforce_eager=False,
        weight_transfer="ipc",
        gpu_memory=0.1,  # has to be free
        extra={
            "attention_backend": "FLASH_ATTN",
            "kv_cache_memory_bytes": cache_gib << 30,
            "max_num_batched_tokens": BATCHED,  # AsyncLLM and LLM choose another number each
        },
    )


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


class Episodes:
    """The episodes of one round: what was asked for, and what came."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._specs = [episode(i) for i in range(EPISODES)]
        self._prefixes = [agent.prefix(spec) for spec in self._specs]
        self._journals = [MemoryJournal() for _ in self._specs]

    async def run(self) -> int:
        """All at once; tokens sampled."""
        players = zip(self._specs, self._prefixes, self._journals, strict=True)
        await asyncio.gather(*(self._agent.run(spec, prefix, InstantSandbox(), j) for spec, prefix, j in players))
        return sum(len(turn.action_A) for journal in self._journals for turn in journal.turns)

    def requests(self) -> Requests:
        return [requests_of(p, journal.turns) for p, journal in zip(self._prefixes, self._journals, strict=True)]

    def windows(self) -> list[Window]:
        players = zip(self._specs, self._prefixes, self._journals, strict=True)
        return [window for spec, prefix, journal in players for window in split(spec, prefix, journal.turns)]


def requests_of(prefix_P: np.ndarray, turns: list[Turn]) -> list[tuple[np.ndarray, int]]:
    """What was asked for each turn, and how many tokens came."""
    return [(context_of(prefix_P, turns, t.index), len(t.action_A)) for t in turns]


async def ours_and_by_hand(engine: Engine, chat: ChatFormat) -> tuple[dict[str, Any], Episodes]:
    """Tokens/s of both, and the last round's episodes."""
    agent = Agent(AgentConfig(action_tokens=ACTION), ContextRule(WINDOW, 256, ACTION), chat, engine)
    ours, by_hand = [], []
    for round_ in range(ROUNDS + 1):
        episodes = Episodes(agent)
        await engine._llm.reset_prefix_cache()
        began = time.perf_counter()
        tokens = await episodes.run()
        played = time.perf_counter()
        requests = episodes.requests()
        await engine._llm.reset_prefix_cache()
        asked = time.perf_counter()
        counts = await asyncio.gather(*(_chain_by_hand(engine._llm, chain) for chain in requests))
        if round_:
            ours.append(tokens / (played - began))
            by_hand.append(sum(counts) / (time.perf_counter() - asked))
    return {
        "episodes": EPISODES,
        "turns": TURNS,
        "action_tokens": ACTION,
        "ours_tokens_per_s": [round(rate) for rate in ours],
        "by_hand_tokens_per_s": [round(rate) for rate in by_hand],
        "ours_over_by_hand": round(statistics.median(ours) / statistics.median(by_hand), 3),
    }, episodes


def _sampling(n_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=1.0,
        max_tokens=n_tokens,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


async def _chain_by_hand(llm: Any, requests: list[tuple[np.ndarray, int]]) -> int:
    from vllm import TokensPrompt

    total = 0
    for context_T, n_tokens in requests:
        prompt = TokensPrompt(prompt_token_ids=context_T.tolist())
        async for output in llm.generate(prompt, _sampling(n_tokens), uuid.uuid4().hex):
            total += len(output.outputs[0].token_ids)
    return total


def generate(llm: Any, requests: Requests) -> dict[str, Any]:
    """Tokens/s of LLM.generate, the median of as many rounds."""
    from vllm import TokensPrompt

    rates = []
    for round_ in range(ROUNDS + 1):
        llm.reset_prefix_cache()
        began, total = time.perf_counter(), 0
        for turn in range(TURNS):
            asked = [chain[turn] for chain in requests if turn < len(chain)]
            prompts = [TokensPrompt(prompt_token_ids=context_T.tolist()) for context_T, _ in asked]
            answers = llm.generate(prompts, [_sampling(n) for _, n in asked], use_tqdm=False)
            total += sum(len(answer.outputs[0].token_ids) for answer in answers)
        if round_:
            rates.append(total / (time.perf_counter() - began))
    return {"tokens_per_s": [round(rate) for rate in rates], "median": statistics.median(rates)}


def start_llm(folder: Path, cache_gib: int) -> Any:
    """vLLM's own entry point, with the arguments of `actors.engine`."""
    from vllm import LLM

    config = engine_config(cache_gib)
    return LLM(
        model=str(folder),
        dtype=config.dtype,
        seed=0,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        enforce_eager=config.enforce_eager,
        gpu_memory_utilization=config.gpu_memory,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        **config.extra,
    )
