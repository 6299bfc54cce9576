"""What the tests on a GPU share. Skipped where there is none; they need no Docker, Ray or Redis."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from klong_rl.config import LearnerConfig
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from klong_rl.models import nano
from klong_rl.types import Window
from learners import model, process
from learners.job import LearnerJob
from learners.publish import GpuWeights
from learners.rank import Rank

# Ranks of both dtypes share this process, and cuBLAS reads it once.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

HERE = Path(__file__).parent
VOCAB = 512


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if HERE in Path(item.fspath).parents:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random Llama with grouped heads and tied embeddings, 20 M parameters, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("models") / "llama"
    nano.build(path, ["cat amber\ndigit 7\n", "echo 7 >> notes"], seed=0, vocab_size=VOCAB)
    eos = LlamaConfig.from_pretrained(path).eos_token_id
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=eos,
        rms_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_rank(folder):
    """Learner ranks in this process: the first joins a group of one, all build a model of their own."""
    joined = []

    def make(dtype: str, **settings) -> Rank:
        learner = LearnerConfig(
            layout=LayoutConfig(data=1),
            optimizer=OptimizerConfig(lr=1e-4, eps=1e-5),
            objective_options={"kl_coefficient": 0.1},
            device="cuda",
            dtype=dtype,
            gpu_memory=0.4,
            token_budget=8192,
        )
        job = LearnerJob(str(folder), LearnerConfig(**{**vars(learner), **settings}))
        rank = Rank(0, job, GpuWeights())
        if not joined:
            joined.append(process.open_store("127.0.0.1", job))
            joined.append(process.join(job, 0, joined[0]))
        rank._device, rank._model = joined[1], model.build(job)
        return rank

    yield make
    if joined:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def windows():
    """Twelve windows of 30 to 1500 tokens, sampled by version 1."""
    rng = np.random.default_rng(0)
    made = []
    for i, length in enumerate(rng.integers(30, 1500, 12)):
        targets_T = (rng.random(length) < 0.5).astype(np.uint8)
        targets_T[0] = 0
        made.append(
            Window(
                id=f"w{i}",
                episode=f"e{i}",
                group="g",
                stage=1,
                tokens_T=rng.integers(1, VOCAB, length, dtype=np.int32),
                targets_T=targets_T,
                logprobs_T=(rng.normal(-6.2, 0.2, length) * targets_T).astype(np.float32),
                versions=((1, int(targets_T.sum())),),
                advantage=float(rng.normal()),
            )
        )
    return made
