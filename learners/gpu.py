"""What a GPU needs of Megatron-core beyond a CPU: the process's device, its share of memory, and the fused kernels.

Written against megatron-core 0.16.1 and Transformer Engine 2.12. Layers are Transformer Engine's, which is what mbridge
builds unless it is told otherwise: norms fused into the linear layer that follows, fused attention, THD packing.
"""

from __future__ import annotations

import os

import torch

# TransformerConfig settings that differ from a CPU's.
TRANSFORMER_CONFIG = {
    # Transformer Engine's kernels, each in the place of several launches.
    "apply_rope_fusion": True,
    "bias_activation_fusion": True,
    "bias_dropout_fusion": True,
    # Transformer Engine's attention does without Megatron's own softmax kernels.
    "masked_softmax_fusion": False,
}


# Logits of a chunk, in elements: 2.5 GiB in bfloat16, those of a row of 8,192 targets of a vocabulary of 160,000.
LOGITS_AT_ONCE = 5 << 28


def install(memory_share: float, dtype: str) -> torch.device:
    """Take this process's GPU, and at most `memory_share` of its memory. Call before CUDA is used."""
    if dtype == "float32":
        # Transformer Engine asks cuBLAS for TF32, whose products have three digits.
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    # Megatron asks for it: kernels of one stream start in the order in which they were launched.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = torch.device("cuda", 0)  # a rank sees its own GPU only
    torch.cuda.set_device(device)
    # What is over it is an error here, and not one of whoever shares the GPU.
    torch.cuda.set_per_process_memory_fraction(memory_share, device)
    return device
