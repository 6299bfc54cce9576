"""The model families the learner trains, and what mbridge 0.15.1 gets wrong or leaves out of them. CPU and GPU alike.

Its bridges are of transformers 4 and of Megatron's pretraining. Under transformers 5 and for RL:

- transformers 5 keeps the rotary settings in `rope_parameters`; the bridges read attributes of the config;
- Llama 3's scaled positions are built as linearly interpolated ones;
- Mixtral's router keeps the softmax over all experts, where the model renormalizes over those chosen; Qwen3-MoE's
  always renormalizes, whatever `norm_topk_prob` says;
- DeepSeek-V3's and GLM-4-MoE's routers ignore expert groups (`n_group`, `topk_group`);
- DeepSeek-V3's weights are read in bfloat16 only, through a kernel for float8;
- auxiliary losses and updates of the router's bias are for pretraining: here only the objective moves the weights, and
  the router's bias stays as it was loaded;
- multi-token prediction layers are not built (nor exported): no objective trains them, and sampling doesn't use them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from klong_rl.errors import UserError

# Kinds of rotary positions that are built right, by `model_type`.
ROPE_KINDS = {
    "llama": ("default", "linear", "llama3"),
    "qwen2": ("default",),
    "qwen3": ("default",),
    "qwen3_moe": ("default",),
    "mixtral": ("default",),
    "deepseek_v3": ("default", "yarn"),
    "glm4_moe": ("default",),
}
# What Megatron's Llama 3 scaling is fixed at.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError, before any weights load, for an HF config (as a dict) that would be built wrongly."""
    family = config.get("model_type")
    if family not in ROPE_KINDS:
        raise UserError(f"model_type={family!r} is no family the learner can train; it knows {sorted(ROPE_KINDS)}")
    rope = _rope(config)
    if rope["rope_type"] not in ROPE_KINDS[family]:
        raise UserError(f"rope_type={rope['rope_type']!r} can't be built for {family}; only {ROPE_KINDS[family]} can")
    if rope["rope_type"] == "llama3" and any(rope.get(name, value) != value for name, value in LLAMA3.items()):
        raise UserError(f"rope_type='llama3' is built with {LLAMA3} and a factor alone; the model has {rope}")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise UserError(f"hidden_act={activation!r} can't be built: only 'silu' can")
    slides = config.get("use_sliding_window") or (family == "mixtral" and config.get("sliding_window"))
    if slides and (config.get("sliding_window") or 0) < config.get("max_position_embeddings", 0):
        raise UserError(
            f"sliding_window={config['sliding_window']} can't be built: attention has to see a whole window"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UserError("mlp_only_layers and decoder_sparse_step can't be built: every layer has to have experts")
    if family in ("deepseek_v3", "glm4_moe"):
        _check_groups(config)


def check_complete(bridge: Any, chunks: Sequence[Any], folder: str) -> None:
    """Raise UserError if the folder has tensors that no rank's model took: it would be another model. A collective."""
    taken = {
        hf_name
        for chunk in chunks
        for name in bridge._weight_name_mapping_mcore_local_to_global(chunk).values()
        if "_extra_state" not in name
        for hf_name in bridge._weight_name_mapping_mcore_to_hf(name)
    }
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, taken)
    layers = bridge.hf_config.num_hidden_layers
    left = sorted(set(bridge.safetensor_io.load_hf_weight_names()).difference(*ranks))
    # Known to be left out: a copy of tied embeddings, what is computed anyway, scales, multi-token prediction.
    known = ("lm_head.weight",) if bridge.hf_config.tie_word_embeddings else ()
    left = [
        name
        for name in left
        if name not in known
        and not name.endswith(("rotary_emb.inv_freq", "_scale_inv"))
        and not ((layer := re.match(r"model\.layers\.(\d+)\.", name)) and int(layer[1]) >= layers)
    ]
    if left:
        raise UserError(f"model={folder!r}: {len(left)} of its tensors have no place in the model, as {left[:3]}")


def _check_groups(config: Mapping[str, Any]) -> None:
    if not config.get("norm_topk_prob", True):
        raise UserError("norm_topk_prob=false can't be built: Megatron's sigmoid router always normalizes")
    chosen, groups = config["num_experts_per_tok"], config.get("topk_group") or 1
    if (config.get("n_group") or 1) > 1 and chosen // groups != 2:
        raise UserError(
            f"num_experts_per_tok={chosen} over topk_group={groups} can't be built: the model ranks a group by its two "
            "best experts, Megatron by num_experts_per_tok // topk_group of them"
        )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings, wherever transformers 4 or 5 wrote them; `rope_type` always there."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def mend(bridge_of: Callable[[Any], Any], hf_config: Any) -> tuple[Any, dict[str, Any]]:
    """The bridge for `hf_config` (a transformers config), and the TransformerConfig settings it has to be given."""
    rope = _rope(hf_config.to_dict())
    hf_config.rope_theta = rope.get("rope_theta", getattr(hf_config, "rope_theta", 10000.0))
    hf_config.partial_rotary_factor = rope.get(
        "partial_rotary_factor", getattr(hf_config, "partial_rotary_factor", 1.0)
    )
    if hf_config.model_type == "deepseek_v3":
        _mend_deepseek(hf_config)
    bridge = bridge_of(hf_config)
    # Only some bridges look at whether embeddings are tied, and those change the mapping of their whole class.
    head = "model.embed_tokens.weight" if hf_config.tie_word_embeddings else "lm_head.weight"
    bridge._DIRECT_MAPPING = {**bridge._DIRECT_MAPPING, "output_layer.weight": head}
    arguments = bridge._get_gptmodel_args
    bridge._get_gptmodel_args = lambda: {**arguments(), **_positions(rope)}
    return bridge, _settings(hf_config, rope)


def _mend_deepseek(hf_config: Any) -> None:
    """The bridge's class, which is made with a setting that Megatron 0.16 calls otherwise."""
    from mbridge.core.safetensor_io import SafeTensorIO
    from mbridge.models.deepseek_v3 import DeepseekV3Bridge
    from megatron.core.transformer import MLATransformerConfig

    def config(*, max_position_embeddings: int, **settings: Any) -> MLATransformerConfig:
        return MLATransformerConfig(original_max_position_embeddings=max_position_embeddings, **settings)

    DeepseekV3Bridge.TransformerConfigClass = staticmethod(config)
    if getattr(hf_config, "quantization_config", None) is None:
        DeepseekV3Bridge._get_safetensor_io = lambda bridge, folder: SafeTensorIO(bridge._get_actual_hf_path(folder))


def _positions(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of GPTModel. (Multi-latent attention takes its own from the TransformerConfig.)"""
    if rope["rope_type"] == "llama3":
        return {"rope_scaling": True, "rope_scaling_factor": rope["factor"], "seq_len_interpolation_factor": None}
    return {"seq_len_interpolation_factor": rope["factor"] if rope["rope_type"] == "linear" else None}


def _settings(hf_config: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    family = hf_config.model_type
    if family in ("mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe"):
        settings |= {
            "moe_router_load_balancing_type": "none",
            "moe_aux_loss_coeff": 0.0,
            "moe_router_bias_update_rate": 0.0,
        }
    if family in ("mixtral", "qwen3_moe"):
        settings["moe_router_pre_softmax"] = family == "qwen3_moe" and not hf_config.norm_topk_prob
    if family in ("deepseek_v3", "glm4_moe") and (hf_config.n_group or 1) > 1:
        settings |= {"moe_router_num_groups": hf_config.n_group, "moe_router_group_topk": hf_config.topk_group}
    if family == "glm4_moe":
        settings |= {
            "moe_shared_expert_intermediate_size": hf_config.moe_intermediate_size * hf_config.n_shared_experts,
            "add_qkv_bias": hf_config.attention_bias,
        }
    if family == "deepseek_v3":
        # The bridge insists on one kind of attention, for good in this process; Transformer Engine finds one that fits.
        settings |= {"mtp_num_layers": None, "attention_backend": "auto"}
    if rope["rope_type"] == "yarn":
        settings |= _yarn(rope)
    return settings


def _yarn(rope: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rotary_scaling_factor": rope["factor"],
        "max_position_embeddings": rope["original_max_position_embeddings"],
        **{name: rope[name] for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if name in rope},
    }
