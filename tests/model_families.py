"""A small random model of every family that the learner knows, as transformers builds and saves it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZES = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "vocab_size": 512, "initializer_range": 0.1, "max_position_embeddings": 8192,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 48, "num_experts_per_tok": 2}
SHARED_EXPERT = {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 6, "head_dim": 8,
}  # fmt: skip
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 128}


def rope(kind: str, factor: float, **settings: float) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": factor, **settings}}


DEEPSEEK = {**SIZES, **EXPERTS, **SHARED_EXPERT, **LATENT, "num_experts_per_tok": 4, "routed_scaling_factor": 2.5}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, llama3 positions": LlamaConfig(**SIZES, **rope("llama3", 8.0, **LLAMA3)),
    "llama, linear positions": LlamaConfig(**SIZES, **rope("linear", 2.0)),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2, untied": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=False),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4, norm_topk_prob=True),
    "qwen3_moe, not normalized": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4, norm_topk_prob=False),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": DeepseekV3Config(**DEEPSEEK, n_group=1, topk_group=1),
    "deepseek_v3, groups, yarn": DeepseekV3Config(**DEEPSEEK, n_group=4, topk_group=2, **rope("yarn", 40.0, **YARN)),
    "glm4_moe": Glm4MoeConfig(
        **SIZES, **EXPERTS, **SHARED_EXPERT, n_group=1, topk_group=1, routed_scaling_factor=1.5, use_qk_norm=True,
        attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
}  # fmt: skip


def build(name: str, folder: Path) -> torch.nn.Module:
    """The model of CONFIGS[name], with nothing left at 0 or 1 (biases, norms, routing biases), saved in `folder`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    model.save_pretrained(folder)
    return model.eval()
