"""Everything that makes Megatron-core run on a CPU. A GPU needs none of it, and nothing else in `learners` knows of it.

megatron-core 0.16.1 names the device `cuda` in its source, and mbridge 0.15.1 builds Transformer Engine layers. Both
run unmodified on a CPU (torch 2.13, gloo) once:

1. every `cuda` device argument means the CPU, `Tensor.cuda()` is the identity and `Tensor.type()` answers with the
   `torch.cuda.` name, which the distributed optimizer compares with to tell float32 parameters from half ones
   (`CudaMeansCpu`);
2. `torch.cuda.current_device` and `torch.cuda.synchronize` answer without a GPU;
3. the random tracker is Megatron's inference one, whose `fork` does nothing: the training one forks CUDA generators.
   Weights come from a checkpoint and dropout is 0, so nothing is drawn from it;
4. layers are Megatron's local ones, fusions off: the fused kernels are CUDA;
5. Megatron's small fused functions run as they are: `torch.compile` would spend 14 s in the first step to save less;
6. the bridge knows the local layers' norms, which Transformer Engine fuses into the linear layer that follows;
7. torch's AdamW, which stands in for Transformer Engine's, has its step counters where the distributed optimizer looks
   for them when it saves and loads (`mend_adam_state`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")

# TransformerConfig settings that differ from a GPU's.
TRANSFORMER_CONFIG = {
    "use_cpu_initialization": True,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
    # Megatron's torch norm doesn't take it; only activation memory is lost.
    "sequence_parallel": False,
}


class CudaMeansCpu(TorchFunctionMode):
    """While it is active, torch functions that are asked for a `cuda` device use the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs and "device" in kwargs:
            kwargs = {**kwargs, "device": _to_cpu(kwargs["device"])}
        if func is torch.Tensor.to:
            args = (args[0], *(_to_cpu(arg) for arg in args[1:]))
        return func(*args, **(kwargs or {}))


def _to_cpu(device: Any) -> Any:
    """The CPU for anything that names a cuda device; what else may stand in its place (a dtype) unchanged."""
    is_cuda = (
        (isinstance(device, str) and device.startswith("cuda"))
        or (isinstance(device, torch.device) and device.type == "cuda")
        or (isinstance(device, int) and not isinstance(device, bool))
    )
    return CPU if is_cuda else device


class PackedAttention(torch.nn.Module):
    """torch's attention in the place of Megatron's local one, which keeps [R, R] scores and knows no packed rows.

    One call a window, so that no window sees another and scores are as large as the longest window's.
    """

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any):
        super().__init__()
        self._scale = softmax_scale

    def forward(
        self, query_RHD: Any, key_RGD: Any, value_RGD: Any, attention_mask: Any, packed_seq_params: Any, **_: Any
    ) -> torch.Tensor:
        """Causal attention within each window of a packed row, [R, heads x D]."""
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        queries, keys, values = (x.transpose(0, 1)[None].split(lengths, 2) for x in (query_RHD, key_RGD, value_RGD))
        grouped = query_RHD.shape[1] != key_RGD.shape[1]
        contexts = [
            torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=self._scale, enable_gqa=grouped
            )
            for query, key, value in zip(queries, keys, values, strict=True)
        ]
        return torch.cat(contexts, 2)[0].transpose(0, 1).flatten(1)


def install(num_threads: int) -> None:
    """Make this process's torch a CPU-only one, for good. Call before Megatron builds anything."""
    torch.set_num_threads(num_threads)
    torch.cuda.current_device = lambda: CPU
    torch.cuda.synchronize = lambda device=None: None
    CudaMeansCpu().__enter__()

    # Must come first: other Megatron modules bind the fuser when they are imported.
    from megatron.core.jit import disable_jit_fuser

    disable_jit_fuser()
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)


def use_local_layers(bridge: Any) -> None:
    """Have an mbridge bridge build Megatron's local layers, and know their parameters' names."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    def layer_spec(vp_stage: int | None = None) -> Any:
        spec = get_gpt_layer_local_spec(
            num_experts=bridge.config.num_moe_experts,
            qk_layernorm=bridge.config.qk_layernorm,
            normalization="RMSNorm",
        )
        spec.submodules.self_attention.submodules.core_attention = PackedAttention
        return spec

    bridge._get_transformer_layer_spec = layer_spec
    bridge._OTHER_MAPPING = {
        **bridge._OTHER_MAPPING,
        "input_layernorm.weight": ["model.layers.{layer_number}.input_layernorm.weight"],
    }
    bridge._MLP_MAPPING = {
        **bridge._MLP_MAPPING,
        "pre_mlp_layernorm.weight": ["model.layers.{layer_number}.post_attention_layernorm.weight"],
    }
    # The provider passes `vp_stage` on only where the spec function takes one.
    bridge.has_vp_stage = True


def mend_adam_state(optimizer: Any) -> None:
    """Make torch's AdamW, inside Megatron's distributed optimizer, fit to be saved and loaded.

    AdamW keeps one step counter a parameter. Megatron 0.16.1 reads it even before the first step, when there is none;
    loads one counter *shared* by all parameters, which AdamW then advances once for each of them; and, restoring whole
    tensors, looks for a counter among tensors that leave it out.
    """
    for distributed in optimizer.chained_optimizers:
        adam: torch.optim.AdamW = distributed.optimizer
        for group in adam.param_groups:
            for shard in group["params"]:
                adam.state[shard] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(shard),
                    "exp_avg_sq": torch.zeros_like(shard),
                }
        distributed._set_main_param_and_optimizer_states = partial(_restore_with_own_step, distributed)


def _restore_with_own_step(distributed: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    group_index, group_order = distributed.model_param_group_index_map[model_param]
    shard = distributed.optimizer.param_groups[group_index]["params"][group_order]
    state = distributed.optimizer.state[shard]
    state["step"] = state["step"].clone()
    type(distributed)._set_main_param_and_optimizer_states(distributed, model_param, {**tensors, "step": state["step"]})
