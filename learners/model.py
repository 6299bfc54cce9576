"""A Hugging Face folder as a Megatron-core model with its optimizer, and back.

`build` makes the model through mbridge: HF config to GPTModel, in Megatron's DDP, under the distributed optimizer.
`export` yields HF-named whole tensors, gathered over tensor and pipeline ranks; `save_hf` writes a folder that
transformers loads.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from klong_rl.errors import UserError
from klong_rl.learner_config import OptimizerConfig
from learners import cpu, families, gpu
from learners.job import LearnerJob

SHARD_SIZE = "5GB"  # of a Hugging Face folder's files


@dataclass(frozen=True)
class Model:
    """`chunks` is Megatron's list of model chunks (one, without virtual pipeline stages), each wrapped in DDP."""

    bridge: Any
    chunks: list[torch.nn.Module]
    optimizer: Any
    scheduler: Any

    def unwrapped(self) -> list[torch.nn.Module]:
        """The GPTModels themselves, without DDP and precision wrappers."""
        from mbridge.core.util import unwrap_model

        return unwrap_model(self.chunks)


def read_hf_config(folder: str) -> dict[str, Any]:
    """The folder's config.json; UserError if there is none, or if what it describes would be built wrongly."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"model={folder!r} is not a Hugging Face folder: {path} is missing")
    config = json.loads(path.read_text())
    try:
        families.check(config)
    except UserError as error:
        raise UserError(f"model={folder!r}: {error}") from error
    return config


def check(job: LearnerJob) -> None:
    """Raise UserError, before any weights load, for a model that can't be built or a layout that doesn't fit it."""
    config = read_hf_config(job.model)
    job.layout.check(config, job.pad_to)
    if job.learner.device == "cpu":
        cpu.check(config, job.layout)


def build(job: LearnerJob) -> Model:
    """The model with the folder's weights, its optimizer and its schedule. Megatron's parallel state must be set up."""
    config = job.learner
    bridge = _bridge(job)
    half = config.dtype == "bfloat16"
    # mbridge prints the parameter count to stdout, which belongs to the program's progress.
    with contextlib.redirect_stdout(io.StringIO()):
        chunks = bridge.get_model(
            wrap_with_ddp=True,
            bf16=half,
            ddp_config={
                "use_distributed_optimizer": True,
                "grad_reduce_in_fp32": True,
                "check_for_nan_in_grad": True,
            },
        )
    bridge.load_weights(chunks, job.model)
    families.check_complete(bridge, chunks, job.model)
    optimizer = _optimizer(config.optimizer, chunks, half)
    if config.device == "cpu":
        cpu.mend_adam_state(optimizer)
    return Model(bridge, chunks, optimizer, _scheduler(config.optimizer, optimizer))


def _bridge(job: LearnerJob) -> Any:
    from mbridge import AutoBridge
    from megatron.core.distributed import finalize_model_grads
    from transformers import AutoConfig

    hf_config = AutoConfig.from_pretrained(job.model)
    dtype = getattr(torch, job.learner.dtype)
    bridge, settings = families.mend(partial(AutoBridge.from_config, dtype=dtype), hf_config)
    on_cpu = job.learner.device == "cpu"
    bridge.set_extra_args(
        # Gradients are divided once, by the sum of the objective's weights over all micro-batches and ranks.
        calculate_per_token_loss=True,
        finalize_model_grads_func=finalize_model_grads,
        # The sampler drops nothing, so neither may the learner: their log-probs must agree.
        attention_dropout=0.0,
        hidden_dropout=0.0,
        **settings,
        **_recompute(job.learner.recompute, hf_config.num_hidden_layers // job.layout.pipeline),
        **(cpu if on_cpu else gpu).TRANSFORMER_CONFIG,
    )
    if on_cpu:
        cpu.use_local_layers(bridge)
    return bridge


def _recompute(share: float, layers: int) -> dict[str, Any]:
    """Of the first `share` of a stage's layers only what enters them is kept for the backward pass."""
    again = math.ceil(share * layers)
    return (
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": again} if again else {}
    )


def _optimizer(settings: OptimizerConfig, chunks: list[torch.nn.Module], half: bool) -> Any:
    """Distributed AdamW; Megatron decays no biases and no norms."""
    from megatron.core import optimizer as megatron_optimizer

    optimizer = megatron_optimizer.get_megatron_optimizer(
        megatron_optimizer.OptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=_end(settings),
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            bf16=half,
            params_dtype=torch.bfloat16 if half else torch.float32,
            use_distributed_optimizer=True,
        ),
        chunks,
    )
    for chunk in chunks:
        chunk.config.grad_scale_func = optimizer.scale_loss
    return optimizer


def _scheduler(settings: OptimizerConfig, optimizer: Any) -> Any:
    """A linear warm-up, then the decay."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=_end(settings),
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=max(settings.warmup_steps + 1, settings.decay_steps),
        lr_decay_style=settings.decay,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def _end(settings: OptimizerConfig) -> float:
    """The learning rate that the decay ends at."""
    return settings.lr if settings.decay == "constant" else settings.min_lr


@torch.no_grad()
def export(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """HF name and whole tensor of every parameter. A collective: all ranks must run it to its end."""
    from mbridge.core import bridge
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        # mbridge 0.15 asks the other stages for each name and shape, 2 ms a tensor on a GPU, also if there are none.
        bridge.broadcast_str_from_megatron_pp = bridge.broadcast_from_megatron_pp = _as_it_is
    for name, tensor in model.bridge.export_weights(model.chunks):
        yield name, tensor.detach()


def _as_it_is(own: Any) -> Any:
    return own


def save_hf(source: str, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write `tensors` into `folder`, in shards with an index if large, beside the config and tokenizer of `source`."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(source).iterdir():
        if path.is_file() and not path.name.startswith(("model", "pytorch_model")):
            shutil.copy2(path, folder / path.name)
    whole = {name: _alone(tensor.contiguous().cpu()) for name, tensor in tensors.items()}
    save_torch_state_dict(whole, folder, max_shard_size=SHARD_SIZE)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a padded vocabulary are a view of more than themselves, which is refused: these are copied."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
