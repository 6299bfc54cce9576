"""Engines in other forms, on GPUs, beside transformers in float32: cut over two of them, and with experts."""

import asyncio

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engine import Engine
from klong_rl.config import EngineConfig
from learners.publish import WeightFolder
from tests.gpu.test_parallelism import build_glm
from tests.learner_ranks import made_windows

WINDOWS = made_windows(12, longest=600)
MEAN = {"llama": 0.05, "glm4_moe": 0.1}  # nats: bfloat16 beside float32; experts are chosen by rounding at times
DIFFERENT = 0.3


def expected(model):
    """Log-prob of every token but the first, by window."""
    found = []
    for window in WINDOWS:
        tokens = torch.from_numpy(window.tokens_T.astype(np.int64))[None].to(model.device)
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1].float()
        found.append(logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].cpu().numpy())
    return found


async def gap_to(engine, model):
    theirs = await asyncio.gather(*(engine.logprobs(window.tokens_T) for window in WINDOWS))
    return np.concatenate([np.abs(a - b) for a, b in zip(theirs, expected(model), strict=True)])


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("name", "ranks"), [("llama", 2), ("glm4_moe", 1)])
def test_an_engine_samples_from_the_model_before_and_after_a_publish(folder, tmp_path, name, ranks):
    if torch.cuda.device_count() < ranks:
        pytest.skip("needs two GPUs")
    path = folder
    if name == "glm4_moe":
        path = tmp_path / "glm"
        _with_tokenizer(folder, path)
        build_glm(path)
    asyncio.run(_scene(path, tmp_path, name, ranks))


def _with_tokenizer(source, path) -> None:
    path.mkdir()
    for file in source.glob("token*"):
        (path / file.name).write_bytes(file.read_bytes())


async def _scene(path, tmp_path, name, ranks):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).cuda().eval()
    config = EngineConfig(
        dtype="bfloat16",
        max_model_len=2048,
        gpu_memory=0.2,
        tensor_parallel=ranks,
        extra={"attention_backend": "FLASH_ATTN", "kv_cache_memory_bytes": 2 << 30},
    )
    engine = await Engine.start(config, str(path), 3, version=1, seed=0)
    try:
        first = await gap_to(engine, model)
        before = await engine.logprobs(WINDOWS[0].tokens_T)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        tensors = {n: t.bfloat16() if t.ndim > 1 else t for n, t in model.state_dict().items() if n not in tied}
        published = WeightFolder(tmp_path / "weights").publish(2, _by_expert(tensors).items())
        paused = (await engine.publish(published, 2))["paused_s"]
        after = await gap_to(engine, model)
        print(f"\n{name} on {ranks}: mean {first.mean():.4f}, then {after.mean():.4f}, a publish of {paused:.2f} s")
        assert max(first.mean(), after.mean()) < MEAN[name]
        assert np.abs(await engine.logprobs(WINDOWS[0].tokens_T) - before).max() > DIFFERENT
    finally:
        engine.shutdown()


def _by_expert(tensors):
    """As a checkpoint has them: transformers 5 keeps a layer's experts in one tensor each."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = tensor
            continue
        stem, kind = name.rsplit(".", 1)
        for i, one in enumerate(tensor):
            if kind == "down_proj":
                found[f"{stem}.{i}.down_proj.weight"] = one
            else:
                found[f"{stem}.{i}.gate_proj.weight"], found[f"{stem}.{i}.up_proj.weight"] = one.chunk(2)
    return found
