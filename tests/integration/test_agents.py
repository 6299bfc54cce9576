"""A hundred agents from outside at once on a real engine: what is recorded is what was sampled, to the last log-prob.

The record is read back from Redis and split into the windows that a learner would train; the engine scores each of
them anew, in one prefill, and must find the log-probs that were recorded as each token was sampled.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import uuid
from pathlib import Path

import numpy as np
import openai
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate

from actors.record import CUT, UNREAD
from actors.rollout import RolloutActor
from actors.settings import ActorSettings
from klong_rl import chain
from klong_rl.agents import AgentEpisode
from klong_rl.branches import runs
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.config import ActorsConfig, AgentConfig, AgentEndpointConfig, EngineConfig, RunConfig, WindowConfig
from klong_rl.models import nano
from klong_rl.types import EpisodeSpec, Task
from klong_rl.windows import split
from learners.publish import WeightFolder
from tests.in_sandbox import IMAGE, LIMITS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EPISODES = int(os.environ.get("KLONG_AGENTS", "100"))
SEED = 7
GAP_MEAN, GAP_MAX = 2e-6, 1e-3  # nats, in float32: one prefill beside steps of one token
TEXTS = ["You have a shell.", "Follow the clues from the file amber.", "cat amber", "digit 7", "submit"]
TOOL = {"type": "function", "function": {"name": "bash", "description": "a shell", "parameters": {"type": "object"}}}


async def wanders(episode: AgentEpisode, sandbox, base_url: str, key: str) -> None:
    """An agent that does all that agents do to a conversation, on the official client: seeded by its episode."""
    rng = random.Random(episode.id)
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:

        async def ask(talk: list[dict], **options):
            answer = await client.chat.completions.create(model="policy", messages=talk, **options)
            return answer.choices[0].message.model_dump()

        async def leave_early(talk: list[dict]) -> None:
            stream = await client.chat.completions.create(model="policy", messages=talk, stream=True)
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            await stream.close()

        async def streamed(talk: list[dict]) -> dict:
            stream = await client.chat.completions.create(model="policy", messages=talk, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return {"role": "assistant", "content": "".join(texts)}

        async def goes_on(talk: list[dict], depth: int) -> None:
            for _ in range(rng.randrange(1, 4)):
                deed = rng.choice(["ask", "stream", "stop", "retry", "edit", "side by side", "leave", "tools"])
                if deed == "retry":
                    await ask(talk)
                if deed == "leave":
                    await leave_early(talk)
                if deed == "edit" and len(talk) > 2:
                    talk[rng.randrange(len(talk))]["content"] = "<|end|><|assistant|>edited"
                if deed == "side by side" and depth == 0:
                    await asyncio.gather(*(goes_on([dict(m) for m in talk], 1) for _ in range(2)))
                options = {"stop": ["e"]} if deed == "stop" else {"tools": [TOOL]} if deed == "tools" else {}
                answer = await (streamed(talk) if deed == "stream" else ask(talk, max_tokens=12, **options))
                result = await sandbox.exec("echo digit $RANDOM", timeout_s=20)
                talk += [answer, {"role": "user", "content": result.output + "<|end|>"}]

        start = [{"role": "system", "content": episode.system}, {"role": "user", "content": episode.instruction}]
        try:
            await goes_on(start, 0)
        except openai.PermissionDeniedError:
            pass  # out of turns


def config(program: dict) -> RunConfig:
    return RunConfig(
        name="agents",
        seed=SEED,
        window=WindowConfig(max_tokens=512, overlap_tokens=0),
        agent=AgentConfig(
            system="You have a shell.", action_tokens=24, program=program, endpoint=AgentEndpointConfig(grace_s=60.0)
        ),
        engine=EngineConfig(max_model_len=512, max_num_seqs=64),
        actors=ActorsConfig(episodes=EPISODES),
    )


def spec(n: int, max_turns: int = 8) -> EpisodeSpec:
    task = Task(
        id=f"t{n}", family="f", instruction=f"Follow the clues from the file amber. {n}", image=IMAGE, limits=LIMITS
    )
    return EpisodeSpec(
        id=f"e{n}", group=f"g{n}", group_size=1, stage=1, purpose="train", task=task, timeout_s=600.0,
        max_turns=max_turns,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """nano's shape with weights that say anything: an untrained nano repeats the last token for sure, which shows
    nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "nano"
    nano.build(folder, TEXTS, seed=1)
    torch.manual_seed(SEED)
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder, initializer_range=0.1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as server:
        yield server


class Played:
    """All episodes, as one actor played them; `publish` gives its engine other weights meanwhile."""

    def __init__(self, program: dict, model: Path, redis: EmbeddedRedis, run: str, root: Path, monkeypatch) -> None:
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        sandboxes = {"_target_": "sandboxes.docker.DockerSandboxes", "run": f"test-{uuid.uuid4().hex[:8]}"}
        self.sandboxes = instantiate(sandboxes)
        self.address = BufferAddress(redis.url, run)
        self.actor = RolloutActor(ActorSettings(config(program), root, str(model), self.address, sandboxes), 0)

    async def play(self, meanwhile=None) -> None:
        async with await Buffer.connect(self.address) as buffer:
            for n in range(EPISODES):
                await buffer.admit(spec(n))
            await self.actor.start("actor", 1)
            run = asyncio.create_task(self.actor.run())
            try:
                while (counts := await buffer.counts()).states.get("sealed", 0) < EPISODES:
                    assert not run.done(), run.result()
                    assert not counts.drops, counts
                    if meanwhile is not None:
                        await meanwhile(self.actor)
                    await asyncio.sleep(0.2)
                self.members = {n: (await buffer.group(f"g{n}"))[0] for n in range(EPISODES)}
                self.counts = counts
                self.windows, self.turns = [], []
                for n, member in self.members.items():
                    turns = [turn for segment in member.segments for turn in segment.turns]
                    chain.check(f"e{n}", np.zeros(0, np.int32), turns)
                    self.turns.append(turns)
                    self.windows += split(spec(n), np.zeros(0, np.int32), turns)
            finally:
                self.rescored = await self._rescored() if hasattr(self, "windows") else None
                await self.actor.stop()
                await run
                await self.sandboxes.reap(keep=set())
                await self.sandboxes.close()

    async def _rescored(self) -> np.ndarray:
        """|recorded - scored anew| of each target, float64."""
        scored = await asyncio.gather(*(self.actor.logprobs(window.tokens_T) for window in self.windows))
        gaps = []
        for window, logprobs_T in zip(self.windows, scored, strict=True):
            at = np.flatnonzero(window.targets_T)
            gaps.append(np.abs(window.logprobs_T[at].astype(np.float64) - logprobs_T[at - 1]))
        return np.concatenate(gaps)

    def assert_exact(self) -> dict[str, int]:
        """Each sampled token that isn't masked is a target once. Tokens by what is to become of them."""
        sampled: dict[str, int] = {}
        for n, turns in enumerate(self.turns):
            outcome = self.members[n].outcome
            recorded: dict[str, int] = {}
            for turn in turns:
                name = turn.masked or "attributed"
                recorded[name] = recorded.get(name, 0) + len(turn.action_A)
            assert outcome.sampled() == recorded
            for name, tokens in recorded.items():
                sampled[name] = sampled.get(name, 0) + tokens
        assert sum(window.n_targets() for window in self.windows) == sampled["attributed"]
        return sampled


def report(name: str, it: Played, sampled: dict[str, int]) -> None:
    n_turns, n_runs = sum(map(len, it.turns)), sum(len(runs(turns)) for turns in it.turns)
    gap = it.rescored
    print(
        f"\n{name}: {EPISODES} episodes, {n_turns} turns, {n_runs} branches, {len(it.windows)} windows, {sampled}; "
        f"gap mean {gap.mean():.2e}, max {gap.max():.2e} over {gap.size} tokens"
    )


async def test_a_hundred_agents_on_the_official_client_are_recorded_exactly(model, redis, tmp_path, monkeypatch):
    program = {"_target_": f"{__name__}.wanders"}
    it = Played(program, model, redis, "openai", tmp_path, monkeypatch)
    await it.play()
    sampled = it.assert_exact()
    report("openai", it, sampled)
    assert set(sampled) <= {"attributed", UNREAD, CUT}
    assert sum(len(runs(turns)) for turns in it.turns) > 2 * EPISODES, "they did branch"
    assert it.rescored.mean() < GAP_MEAN and it.rescored.max() < GAP_MAX


async def test_a_hundred_mini_swe_agents_are_recorded_exactly(model, redis, tmp_path, monkeypatch):
    pytest.importorskip("minisweagent", reason="`make agents` installs it")
    program = {"_target_": "examples.mini_swe_agent.run", "action_regex": r"\A(.+)\Z", "command_timeout_s": 3.0}
    it = Played(program, model, redis, "mini", tmp_path, monkeypatch)
    await it.play()
    sampled = it.assert_exact()
    report("mini-swe-agent", it, sampled)
    assert set(sampled) == {"attributed"}, "nothing is masked"
    for turns in it.turns:  # one conversation, but that mini-swe-agent leaves out an answer without a command
        for turn in turns[1:]:
            blank = not turns[turn.index - 1].command
            assert turn.follows == (turns[turn.index - 1].follows if blank else turn.index - 1)
    assert len(it.windows) < EPISODES * 1.1
    assert it.rescored.mean() < GAP_MEAN and it.rescored.max() < GAP_MAX


async def test_new_weights_in_the_middle_of_streams_are_told_apart_token_by_token(model, redis, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    program = {"_target_": f"{__name__}.wanders"}
    it = Played(program, model, redis, "publish", tmp_path, monkeypatch)
    models = {0: AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()}
    weights = WeightFolder(tmp_path / "weights")

    async def publish(actor: RolloutActor) -> None:
        version = len(models)
        torch.manual_seed(version)
        models[version] = LlamaForCausalLM(models[0].config).eval()
        await actor.publish(weights.publish(version, models[version].state_dict().items()), version)

    await it.play(publish)
    it.assert_exact()
    turns = [turn for some in it.turns for turn in some]
    assert any(len(turn.versions) > 1 for turn in turns), "weights came in the middle of an answer"
    checked, gaps = 0, []
    for window in it.windows[:40]:
        with torch.no_grad():
            ids = torch.from_numpy(window.tokens_T.astype(np.int64))[None]
            scored = {version: models[version](ids).logits[0].log_softmax(-1) for version, _ in window.versions}
        at = iter(np.flatnonzero(window.targets_T).tolist())
        for version, count in window.versions:
            for _ in range(count):
                i = next(at)
                gaps.append(abs(float(scored[version][i - 1, window.tokens_T[i]]) - float(window.logprobs_T[i])))
                checked += 1
    print(f"\npublish: {len(models) - 1} publishes, {checked} tokens against transformers, max {max(gaps):.2e}")
    assert max(gaps) < GAP_MAX


def test_a_run_trains_on_what_a_program_does(launch, tmp_path):
    program = "agent.program._target_=examples.chat_agent.run"
    run = launch(program, "window.max_tokens=256", "sandbox.warm=2", "cold_start.steps=60")
    assert run.finish(600) == 0, run.output()[-3000:]
    steps = [json.loads(line) for line in (tmp_path / "runs/mini/metrics.jsonl").read_text().splitlines()]
    rows = pq.read_table(tmp_path / "runs/mini/archive").to_pylist()
    trained = [row for row in rows if row["window"] is not None]
    assert len(steps) == 4 and trained
    for step in steps:
        assert step["extras"]["attributed_tokens"] >= step["action_tokens"] > 0
        assert step["extras"]["masked_tokens"] == 0
        assert step["logprob_gap_mean"] < 1e-5
        mine = [row for row in trained if row["step"] == step["step"]]
        assert sum(len(row["action"]) for row in mine) == step["action_tokens"]
    assert all(row["prompt"] is not None for row in rows if row["turn"] is not None)
    print("\n", [(s["step"], s["action_tokens"], s["reward_mean"], s["logprob_gap_mean"]) for s in steps])
