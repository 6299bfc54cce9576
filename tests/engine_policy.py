"""A real engine and the transformers models that it should agree with, for tests of the engine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.engine import Engine
from klong_rl.models import nano
from learners.publish import WeightFolder

EXACT = 1e-4  # nats, at most, between two float32 implementations
DIFFERENT = 0.05  # nats, at least, between two sets of weights
TEXTS = ["cat amber\ndigit 7\nnext cedar\n", "echo 7 >> notes; cat cedar"]
LONG = 160  # tokens of an answer that a publish comes in the middle of


@dataclass
class Policy:
    """An engine and, by version, the transformers models that it should agree with."""

    engine: Engine
    weights: WeightFolder
    models: dict[int, torch.nn.Module]
    newest: int = field(default=1)

    async def publish(self, seed: int) -> int:
        """Other weights of the same shape, drawn with `seed`, as the next version."""
        torch.manual_seed(seed)
        model = LlamaForCausalLM(self.models[1].config).eval()
        self.newest += 1
        self.models[self.newest] = model
        await self.engine.publish(self.weights.publish(self.newest, tensors(model).items()), self.newest)
        return self.newest

    def expected(self, tokens_T: np.ndarray, version: int, temperature: float = 1.0) -> np.ndarray:
        """Log-prob of each token given those before it, under the weights of `version`: float32 [T-1]."""
        ids_T = torch.from_numpy(tokens_T.astype(np.int64))
        with torch.no_grad():
            logits_TV = self.models[version](ids_T[None]).logits[0, :-1] / temperature
        return logits_TV.log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0].numpy()


def tensors(model) -> dict[str, torch.Tensor]:
    """As a checkpoint has them: a tied head is not stored."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def build(folder: Path, tied: bool) -> None:
    nano.build(folder, TEXTS, seed=1)
    if tied:
        config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=True, initializer_range=0.1)
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)


def context(seed: int, length: int = 24) -> np.ndarray:
    rng = random.Random(seed)
    return np.array([rng.randrange(5, 512) for _ in range(length)], np.int32)
