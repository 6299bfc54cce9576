"""How busy a vLLM engine is, by its own count: what waits, and how full its KV cache is.

vLLM hands its scheduler's statistics of each engine step to "stat loggers". Seen in vLLM 0.32.0: a logger of ours makes
it count, and a logger that isn't asked for (Prometheus) comes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.loggers import StatLoggerBase


class EngineLoad:
    """Of the engine whose `stat_loggers` has `logger`. An idle engine makes no steps: its last one stands."""

    def __init__(self) -> None:
        self.waiting = 0
        self.kv_use = 0.0  # 0 to 1, blocks that are kept only to be found again not counted
        self.fits = 0  # contexts of the greatest length, sampled at once; 0 until the engine is up

    def logger(self, vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """What `stat_loggers` wants: called by vLLM once the engine is up."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        load = self

        class LoadLogger(StatLoggerBase):
            def __init__(self) -> None:
                pass

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    load.waiting = scheduler_stats.num_waiting_reqs
                    load.kv_use = scheduler_stats.kv_cache_usage

            def log_engine_initialized(self) -> None:
                pass

        cache, longest = vllm_config.cache_config, vllm_config.model_config.max_model_len
        blocks_a_context = -(-longest // cache.block_size)
        self.fits = min((cache.num_gpu_blocks or 0) // blocks_a_context, vllm_config.scheduler_config.max_num_seqs)
        return LoadLogger()
