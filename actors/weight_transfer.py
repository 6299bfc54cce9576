"""The ways of weights from a learner to a vLLM engine: vLLM's own CUDA IPC, and two backends of ours for its API.

`SHARED_MEMORY` reads a safetensors file (which the learner wrote to /dev/shm) inside the engine's process; `NETWORK`
fetches from the learner over NCCL or gloo (actors.linked_weights). Both are registered with vLLM's factory, in each of
its processes (actors.vllm_plugin).

    learner: write file          engine: pause(keep) -> start -> update(path) -> finish(version) -> resume

Written against vLLM 0.26 to 0.32: `WeightTransferEngine` of `vllm.distributed.weight_transfer.base`.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klong_rl.config import EngineConfig

SHARED_MEMORY = "klong_shared_memory"
CUDA_IPC = "ipc"  # vLLM's own: learner and engine on one GPU
NETWORK = "network"
OURS = {SHARED_MEMORY: "SharedMemoryEngine", NETWORK: "NetworkEngine"}


def register() -> None:
    """Make our backends known to vLLM; may be called more than once in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for backend, name in OURS.items():
        if backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(backend, __name__, name)


def prepare(backend: str) -> None:
    """Make `backend` usable in this process and the engine's, which inherits its environment. Before vLLM starts."""
    if backend == CUDA_IPC:
        # Handles to the learner's memory reach the engine's process as pickles; both are this run's own.
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    else:
        register()


def init_info(config: EngineConfig) -> dict[str, Any]:
    """What an engine's processes are told once, before any update."""
    if config.weight_transfer != NETWORK:
        return {}
    return {"engine": uuid.uuid4().hex, "deadline_s": config.transfer_timeout_s}


def check_whole(weights: dict[str, Any]) -> None:
    """Raise ValueError for published weights whose file is absent or cut short."""
    from safetensors import SafetensorError, safe_open

    if (path := weights.get("path")) is None:
        return
    try:
        with safe_open(path, framework="np"):  # compares the header with the file's length, and reads no tensor
            pass
    except FileNotFoundError as error:
        raise ValueError(f"weights {path} are gone; were they replaced before this update?") from error
    except SafetensorError as error:
        raise ValueError(f"weights {path} are damaged: {error}") from error


def __getattr__(name: str) -> Any:
    # The classes need vLLM's base class; importing vLLM costs seconds that a mere `import actors` must not pay.
    if name == "SharedMemoryEngine":
        return _shared_memory_class(_reloading_class())
    if name == "NetworkEngine":
        from actors.linked_weights import engine_class

        return engine_class(_reloading_class())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _reloading_class() -> type:
    """What our backends share: vLLM's layer-wise reload, checked to be whole."""
    import torch
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    class ReloadingEngine(WeightTransferEngine):
        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":  # the base class waits for an accelerator, whether there is one or not
                torch.accelerator.synchronize()

        def check_loaded(self, source: str) -> None:
            """ValueError if `source` had not all weights."""
            if lacking := _not_loaded(self.model):
                raise ValueError(f"{source} lacks weights of {len(lacking)} layers, the first: {lacking[0]}")

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            _refresh_tied_head(self.model)

        @staticmethod
        def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
            """The learner publishes by itself (learners.publish, learners.link)."""
            raise NotImplementedError

    return ReloadingEngine


def _shared_memory_class(reloading: type) -> type:
    from safetensors import safe_open
    from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        """Nothing to agree on beforehand."""

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        path: str  # safetensors, Hugging Face names

    class SharedMemoryEngine(reloading):
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass

        def receive_weights(self, update_info: UpdateInfo) -> None:
            with safe_open(update_info.path, framework="pt") as tensors:
                self.model.load_weights((name, tensors.get_tensor(name)) for name in tensors.keys())
            self.check_loaded(update_info.path)

        def shutdown(self) -> None:
            pass

    return SharedMemoryEngine


def _is_tied_head(model: Any, layer: Any) -> bool:
    return getattr(model.config, "tie_word_embeddings", False) and layer is getattr(model, "lm_head", None)


def _not_loaded(model: Any) -> list[str]:
    """Layers that a reload under way has not got all weights of: vLLM would finish it with old or arbitrary ones."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    lacking = []
    for name, layer in model.named_modules():
        reload = get_layerwise_info(layer)
        expects = reload.can_load() and any(True for _ in layer.parameters(recurse=False))
        # An embedding's padding is in no file, so that one never counts as complete; it has one tensor.
        padded = isinstance(layer, VocabParallelEmbedding) and reload.load_numel > 0
        if expects and not padded and not _is_tied_head(model, layer):
            lacking.append(name)
    return lacking


def _refresh_tied_head(model: Any) -> None:
    """Pack a tied output head again, from the new embedding.

    On a CPU vLLM packs the head's matrix when it loads a model and multiplies with that copy ever after. A reload of
    tied embeddings renews the embedding and, as the checkpoint has no tensor of the head's own, leaves the copy behind
    (vLLM 0.32): log-probs of neither the old weights nor the new. On a GPU this does nothing.
    """
    for layer in model.modules():
        if _is_tied_head(model, layer):
            layer.quant_method.process_weights_after_loading(layer)
