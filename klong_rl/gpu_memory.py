"""Does it fit? The memory of a GPU that an engine and a learner rank share, or each has to itself, added up before
anything loads.

    engine.gpu_memory x GPU     weights + KV cache: vLLM takes all of its share, whatever is left is cache
    learner.gpu_memory x GPU    weights, gradients, master weights and Adam's moments, published copies, activations
    the rest                    the learner's CUDA context and what its libraries take outside of torch's allocator

Formulas are for bf16 Transformer Engine layers with fused attention: what each layer keeps for its backward pass, in
elements a token, is its two norms' inputs and outputs (4 h), q, k and v (q + 2 kv), q and k before their norms where
they have any (q + kv), the attention's output (q), and of the gated MLP both halves of the first product and the second
one's input (3 ffn).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from klong_rl.config import EngineConfig, LearnerConfig, RunConfig
from klong_rl.errors import UserError
from klong_rl.objectives import build_objective

GIB = 2**30
CONTEXT_GIB = 1.5  # of one process: CUDA context, NCCL, cuBLAS and cuDNN
ENGINE_WORK_GIB = 2.0  # of vLLM beside weights and cache: context, CUDA graphs, activations of a step
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
PUBLISHED_COPIES = 2  # learners.publish.KEPT
LOGITS_AT_ONCE = 5 << 28  # learners.gpu: of a chunk of tokens, which their gradient takes the place of
QK_NORMS = ("qwen3", "qwen3_moe")  # model types whose queries and keys have norms of their own


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on. `ffn` counts the experts that one token passes through."""

    parameters: int
    layers: int
    hidden: int
    query_width: int  # heads x head size
    kv_width: int  # key-value heads x head size
    qk_norm: bool
    ffn: int
    vocab: int

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """Of a Hugging Face folder, whose safetensors' headers say how many parameters there are."""
        config = json.loads((folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_size = config.get("head_dim") or config["hidden_size"] // heads
        experts = config.get("num_experts_per_tok") or 0
        ffn = experts * config["moe_intermediate_size"] if "moe_intermediate_size" in config else 0
        return cls(
            parameters=sum(_parameters(path) for path in folder.glob("*.safetensors")),
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            query_width=heads * head_size,
            kv_width=(config.get("num_key_value_heads") or heads) * head_size,
            qk_norm=config.get("model_type") in QK_NORMS or bool(config.get("use_qk_norm")),
            ffn=ffn or config["intermediate_size"],
            vocab=config["vocab_size"],
        )


def _parameters(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:  # reads the header alone
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())


def learner_bytes(shape: ModelShape, learner: LearnerConfig, *, reference: bool = False) -> dict[str, int]:
    """What rank 0, the fullest, holds at the peak of a step, by what it is for. Experts count as unspread."""
    size, layout = BYTES[learner.dtype], learner.layout
    n = shape.parameters // (layout.tensor * layout.pipeline)
    # Float32 parameters are their own master weights.
    optimizer = (12 if size == 2 else 8) * n // (layout.data * layout.context)
    per_layer = 4 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width + 3 * shape.ffn
    if shape.qk_norm:
        per_layer += shape.query_width + shape.kv_width
    # A pipeline stage has fewer layers, and as many more micro-batches under way.
    tokens = learner.token_budget // (layout.tensor * layout.context)
    vocab = shape.vocab // layout.tensor
    # Of layers computed again: what enters each, and one of them at a time in full.
    again = math.ceil(learner.recompute * shape.layers)
    kept = per_layer * (shape.layers - again + bool(again)) + shape.hidden * again
    logits, head = vocab * tokens, vocab * shape.hidden
    return {
        "weights": size * n * (2 if reference else 1),
        "gradients": 4 * n,
        "optimizer": optimizer,
        "published copies": PUBLISHED_COPIES * size * shape.parameters,
        "activations": size * kept * tokens,
        # Logits, and the gradient of the head's weight: of several chunks summed in float32.
        "head": size * min(LOGITS_AT_ONCE, logits) + (size if logits <= LOGITS_AT_ONCE else 4 + size) * head,
    }


def engine_bytes(shape: ModelShape, engine: EngineConfig) -> dict[str, int]:
    """The least that one rank of an engine works with: weights, work space, the cache of one longest sequence."""
    size, ranks = BYTES[engine.dtype], engine.tensor_parallel
    return {
        "weights": size * shape.parameters // ranks,
        "work space": int(ENGINE_WORK_GIB * GIB),
        "KV cache of one sequence": size * 2 * shape.kv_width * shape.layers * engine.max_model_len // ranks,
    }


def check(config: RunConfig, folder: Path, total: int) -> None:
    """Raise UserError, with the sum, for what doesn't fit on a GPU of `total` bytes, or on one that all share."""
    learner, engine = config.learner, config.engine
    if engine.weight_transfer == "ipc":
        _check_together(config, total)
    needs_reference = "reference" in build_objective(learner.objective, learner.objective_options).needs
    check_learner(learner, folder, total, reference=needs_reference)
    shorter = "lower engine.max_model_len or raise it"
    _check_share("engine", engine.gpu_memory, total, engine_bytes(ModelShape.read(folder), engine), shorter)


def check_learner(learner: LearnerConfig, folder: Path, total: int, *, reference: bool = False) -> None:
    """Raise UserError, with the sum, if a rank of `folder` doesn't fit its share of a GPU of `total` bytes."""
    less_tokens = "lower learner.token_budget, raise learner.recompute, or raise learner.gpu_memory"
    needs = learner_bytes(ModelShape.read(folder), learner, reference=reference)
    _check_share("learner", learner.gpu_memory, total, needs, less_tokens)


def _check_together(config: RunConfig, total: int) -> None:
    count, engine, learner = config.actors.count, config.engine.gpu_memory, config.learner.gpu_memory
    together = (count * engine + learner) * total + CONTEXT_GIB * GIB
    if together > total:
        raise UserError(
            f"{count} x engine.gpu_memory={engine:g} ({_gib(engine * total)}) + learner.gpu_memory={learner:g} "
            f"({_gib(learner * total)}) + {CONTEXT_GIB:g} GiB for a CUDA context = {_gib(together)}, and the GPU has "
            f"{_gib(total)}; lower one of them"
        )


def _check_share(name: str, share: float, total: int, needs: Mapping[str, int], remedy: str) -> None:
    need = sum(needs.values())
    if need > share * total:
        parts = " + ".join(f"{what} {_gib(size)}" for what, size in needs.items())
        raise UserError(
            f"{name}.gpu_memory={share:g} of {_gib(total)} is {_gib(share * total)}, and the {name} needs about "
            f"{_gib(need)} ({parts}); {remedy}"
        )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def gpu_total() -> int:
    """Bytes of this machine's first GPU; UserError if it has none. Asks the driver, so no context is made."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError as error:
        raise UserError("learner.device=cuda needs the package nvidia-ml-py; see docs/gpu.md") from error
    except pynvml.NVMLError as error:
        raise UserError(f"learner.device=cuda, and there is no GPU here ({error}); use cluster=cpu") from error
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total
    finally:
        pynvml.nvmlShutdown()
