"""Random models of real shapes, made on the GPU in seconds: speed does not depend on what the weights say."""

from __future__ import annotations

from pathlib import Path

from klong_rl.models import nano

SHAPES = {
    "smollm2-135m": {
        "architecture": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "qwen3-1.7b": {
        "architecture": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def build(name: str, folder: Path) -> Path:
    """The model `name` of SHAPES in bfloat16, with nano's tokenizer, under `folder`; found again if it is there."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    path = folder / name
    if (path / "model.safetensors").exists():
        return path
    nano.build(path, ["cat amber\ndigit 7\n", "echo 7 >> notes"], seed=0)
    eos = LlamaConfig.from_pretrained(path).eos_token_id
    shape = dict(SHAPES[name])
    config_class = {"llama": LlamaConfig, "qwen3": Qwen3Config}[shape.pop("architecture")]
    config = config_class(
        **shape, max_position_embeddings=32_768, tie_word_embeddings=True, bos_token_id=None, eos_token_id=eos
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    return path


def flops_per_token(name: str, window: int) -> float:
    """Forward and backward of one token in a window of `window`: 6 per weight that multiplies, and causal attention.

    6 x (layers' matrices + head) + 6 x layers x heads x head size x window: scores and values are 2 x 2 x window each
    way a token, half of it by causality, three times with the backward pass. Recomputation is not counted.
    """
    s = SHAPES[name]
    hidden, ffn, layers = s["hidden_size"], s["intermediate_size"], s["num_hidden_layers"]
    query, key = s["num_attention_heads"] * s["head_dim"], s["num_key_value_heads"] * s["head_dim"]
    matrices = layers * (2 * hidden * query + 2 * hidden * key + 3 * hidden * ffn) + hidden * s["vocab_size"]
    return 6.0 * matrices + 6.0 * layers * query * window
