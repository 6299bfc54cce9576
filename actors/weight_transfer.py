"""Weights from a learner to a vLLM engine on the same host, through shared memory: a backend of vLLM's own API.

vLLM ships NCCL and CUDA IPC backends; a CPU has neither. This one reads a safetensors file (which the learner wrote to
/dev/shm) inside the engine's process, and is registered with vLLM's factory under `SHARED_MEMORY`. vLLM loads
`register` in each of its processes through the entry point `vllm.general_plugins` (setup.py).

    learner: write file          engine: pause(keep) -> start -> update(path) -> finish(version) -> resume

Written against vLLM 0.32: `WeightTransferEngine` of `vllm.distributed.weight_transfer.base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_MEMORY = "klong_shared_memory"


def register() -> None:
    """Entry point of `vllm.general_plugins`; vLLM may call it more than once in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if SHARED_MEMORY not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(SHARED_MEMORY, __name__, "SharedMemoryEngine")


def __getattr__(name: str) -> Any:
    # The class needs vLLM's base class; importing vLLM costs seconds that a mere `import actors` must not pay.
    if name == "SharedMemoryEngine":
        return _engine_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _engine_class() -> type:
    from safetensors import safe_open
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        """Nothing to agree on beforehand."""

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        path: str  # safetensors, Hugging Face names

    class SharedMemoryEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # The base class also waits for `torch.accelerator`, which a CPU doesn't have.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: UpdateInfo) -> None:
            if not Path(update_info.path).exists():
                raise FileNotFoundError(f"weights {update_info.path} are gone; were they replaced before this update?")
            with safe_open(update_info.path, framework="pt") as tensors:
                self.model.load_weights((name, tensors.get_tensor(name)) for name in tensors.keys())

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            _refresh_tied_head(self.model)

        def shutdown(self) -> None:
            pass

    return SharedMemoryEngine


def _refresh_tied_head(model: Any) -> None:
    """Point a tied output head at the new embedding.

    On a CPU vLLM prepacks the head's matrix once and keeps the copy; with tied embeddings the reload replaces the
    embedding and leaves that copy behind (vLLM 0.32), so the head is processed again from its new weight.
    """
    head, body = getattr(model, "lm_head", None), getattr(model, "model", None)
    embedding = getattr(body, "embed_tokens", None)
    if head is None or embedding is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    method = getattr(head, "quant_method", None)
    head.weight = embedding.weight
    if method is not None and hasattr(method, "process_weights_after_loading"):
        method.process_weights_after_loading(head)
