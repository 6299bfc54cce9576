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
6. the bridge is shown the local layers' parameters under other names (`TransformerEngineNames`);
7. experts run one after the other, and CUDA's streams, on which their dispatcher waits, are nothing (`_NoStream`);
8. norms are torch's, marked for sequence parallelism (`RMSNorm`);
9. torch's AdamW, which stands in for Transformer Engine's, has its step counters where the distributed optimizer looks
   for them when it saves and loads (`mend_adam_state`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from klong_rl.errors import UserError
from learners import context
from learners.layout import ParallelLayout

CPU = torch.device("cpu")

# TransformerConfig settings that differ from a GPU's.
TRANSFORMER_CONFIG = {
    "use_cpu_initialization": True,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
    "persist_layer_norm": False,
    "moe_grouped_gemm": False,
    "moe_shared_expert_overlap": False,
}

# Logits of a chunk, in elements: 1 GiB in float32, and a few copies of it.
LOGITS_AT_ONCE = 1 << 28


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

    One call a window, so that no window sees another and scores are as large as the longest window's. With context
    parallelism, one for each piece of a window.
    """

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any):
        from megatron.core import parallel_state

        super().__init__()
        self._scale = softmax_scale
        self._context = parallel_state.get_context_parallel_group()

    def forward(
        self, query_RHD: Any, key_RGD: Any, value_RGD: Any, attention_mask: Any, packed_seq_params: Any, **_: Any
    ) -> torch.Tensor:
        """Causal attention within each window of a packed row, [R, heads x D]."""
        if self._context.size() > 1:
            return self._over_ranks(query_RHD, key_RGD, value_RGD, packed_seq_params.cu_seqlens_q.numpy())
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        queries, keys, values = (_heads_first(x).split(lengths, 2) for x in (query_RHD, key_RGD, value_RGD))
        contexts = [
            self._attend(query, key, value, is_causal=True)
            for query, key, value in zip(queries, keys, values, strict=True)
        ]
        return torch.cat(contexts, 2)[0].transpose(0, 1).flatten(1)

    def _over_ranks(
        self, query_rHD: torch.Tensor, key_rGD: torch.Tensor, value_rGD: torch.Tensor, starts_W1: np.ndarray
    ) -> torch.Tensor:
        """This context rank's queries, with the keys and values of all."""
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        ranks, rank = self._context.size(), self._context.rank()
        order = np.argsort(np.concatenate([context.places(starts_W1, ranks, other) for other in range(ranks)]))
        key, value = (
            _heads_first(gather_from_sequence_parallel_region(x.contiguous(), group=self._context)[order])
            for x in (key_rGD, value_rGD)
        )
        held = context.pieces(starts_W1, ranks, rank)
        queries = _heads_first(query_rHD).split([last - first for _, first, last in held], 2)
        contexts = [
            self._attend(
                query,
                key[:, :, start : start + last],
                value[:, :, start : start + last],
                attn_mask=torch.ones(last - first, last, dtype=torch.bool).tril(first),
            )
            for query, (start, first, last) in zip(queries, held, strict=True)
        ]
        return torch.cat(contexts, 2)[0].transpose(0, 1).flatten(1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **mask: Any) -> torch.Tensor:
        grouped = query.shape[1] != key.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, scale=self._scale, enable_gqa=grouped, **mask
        )


def _heads_first(x_RHD: torch.Tensor) -> torch.Tensor:
    """As torch's attention takes it, [1, H, R, D]."""
    return x_RHD.transpose(0, 1)[None]


class _NoStream:
    """A CUDA stream, or an event on one, where all that was begun is done."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def record_event(self) -> _NoStream:
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""


def _as_on_the_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """What Megatron makes of a GPU's tensor: gloo takes the sizes it splits by as an array alone."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def install(num_threads: int) -> None:
    """Make this process's torch a CPU-only one, for good. Call before Megatron builds anything."""
    torch.set_num_threads(num_threads)
    torch.cuda.current_device = lambda: CPU
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.Stream = _NoStream
    torch.cuda.current_stream = lambda device=None: _NoStream()
    torch.cuda.stream = contextlib.nullcontext
    CudaMeansCpu().__enter__()

    # Must come first: other Megatron modules bind the fuser when they are imported.
    from megatron.core.jit import disable_jit_fuser

    disable_jit_fuser()
    from megatron.core.tensor_parallel import random

    random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    # Recomputed activations are drawn as they were: nothing is, and there are no generators on a GPU.
    random._get_cuda_rng_state = lambda *_, **__: None
    random._set_cuda_rng_state = lambda *_, **__: None
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    token_dispatcher.maybe_move_tensor_to_cpu = _as_on_the_host
    # Both are asked for, but there only where Transformer Engine is.
    moe_utils.te_general_gemm = None
    multi_latent_attention.TELinear = ()  # which nothing is an instance of


class RMSNorm(torch.nn.RMSNorm):
    """torch's, which Megatron's own wrapper refuses to build for rows that are split over tensor ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float, **_: Any):
        super().__init__(hidden_size, eps)
        # Each rank has the gradient of its part of the row: Megatron sums those of parameters with this mark.
        self.weight.sequence_parallel = config.sequence_parallel


def check(model: Mapping[str, Any], layout: ParallelLayout) -> None:
    """Raise UserError for a layout that local layers would train wrongly. `model` is an HF config as a dict."""
    if model.get("kv_lora_rank") and layout.tensor > 1:
        raise UserError(
            f"layout.tensor={layout.tensor} can't be trained on a CPU for {model['model_type']}: its latent "
            "attention doesn't sum the gradient of the keys that all heads share over tensor ranks; use tensor=1"
        )


def use_local_layers(bridge: Any) -> None:
    """Have an mbridge bridge build Megatron's local layers, and know their parameters."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.utils import unwrap_model

    def block_spec(vp_stage: int | None = None) -> Any:
        spec = get_gpt_decoder_block_spec(bridge.config, False, normalization="RMSNorm", vp_stage=vp_stage)
        spec.layer_norm = RMSNorm
        for layer in spec.layer_specs:
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
            attention = layer.submodules.self_attention.submodules
            attention.core_attention = PackedAttention
            for norm in ("q_layernorm", "k_layernorm", "kv_layernorm"):
                if getattr(attention, norm, None) is WrappedTorchNorm:
                    setattr(attention, norm, RMSNorm)
        return spec

    bridge._get_transformer_layer_spec = block_spec
    # The provider passes `vp_stage` on only where the spec function takes one.
    bridge.has_vp_stage = True

    def named(chunk: Any) -> TransformerEngineNames:
        return chunk if isinstance(chunk, TransformerEngineNames) else TransformerEngineNames(unwrap_model(chunk))

    load, export = bridge.load_weights, bridge.export_weights
    names = bridge._weight_name_mapping_mcore_local_to_global
    bridge.load_weights = lambda chunks, folder: load([named(chunk) for chunk in chunks], folder)
    bridge.export_weights = lambda chunks: export([named(chunk) for chunk in chunks])
    bridge._weight_name_mapping_mcore_local_to_global = lambda chunk, **options: names(named(chunk), **options)


class TransformerEngineNames:
    """A GPTModel of local layers whose parameters go by Transformer Engine's names, the ones that mbridge knows.

    There a norm is part of the linear layer that follows it, and the experts of a rank are one module.
    """

    def __init__(self, gpt: torch.nn.Module):
        self.decoder = gpt.decoder
        self._gpt = gpt

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((self._rename(name), parameter) for name, parameter in self._gpt.named_parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {self._rename(name): tensor for name, tensor in self._gpt.state_dict().items()}

    def _rename(self, name: str) -> str:
        if not (found := re.match(r"decoder\.layers\.(\d+)\.", name)):
            return name
        layer = self.decoder.layers[int(found[1])]
        if layer.config.multi_latent_attention:
            name = name.replace("attention.q_layernorm.", "attention.linear_q_up_proj.layer_norm_")
            name = name.replace("attention.kv_layernorm.", "attention.linear_kv_up_proj.layer_norm_")
        else:
            name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        if not hasattr(layer.mlp, "experts"):
            name = name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        return re.sub(r"experts\.local_experts\.(\d+)\.(linear_fc\d)\.weight", r"experts.\2.weight\1", name)


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
