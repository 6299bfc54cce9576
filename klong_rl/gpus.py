"""Are there GPUs enough, and can an engine be cut as asked? Checked before anything takes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from klong_rl.config import ActorsConfig, RunConfig
from klong_rl.errors import UserError


def check_tensor_parallel(config: RunConfig, model: Mapping[str, Any]) -> None:
    """Raise UserError for an engine whose ranks can't share the heads of `model`, an HF config as a dict."""
    ranks = config.engine.tensor_parallel
    heads = model["num_attention_heads"]
    if heads % ranks:
        raise UserError(
            f"engine.tensor_parallel={ranks} does not divide num_attention_heads={heads}; use a size that does"
        )
    shared = model.get("num_key_value_heads") or heads
    # Below one key-value head a rank, vLLM gives several ranks a copy of the same one.
    if shared % ranks and ranks % shared:
        raise UserError(
            f"engine.tensor_parallel={ranks} and num_key_value_heads={shared}: neither divides the other; use a size "
            "that does"
        )


def wanted(config: RunConfig) -> tuple[float, float]:
    """GPUs of all engines and of all learner ranks, in Ray's accounting."""
    layout = config.learner.layout
    ranks = layout.tensor * layout.pipeline * layout.context * layout.data
    return config.actors.count * config.actors.num_gpus, ranks * config.learner.num_gpus


def check_cluster(config: RunConfig, nodes: Sequence[float]) -> None:
    """Raise UserError if the GPUs of the nodes are too few; `nodes` has those of each."""
    engines, ranks = wanted(config)
    if engines + ranks > sum(nodes):
        raise UserError(
            f"actors.count={config.actors.count} engines of actors.num_gpus={config.actors.num_gpus:g} and the learner "
            f"ranks need {engines:g} + {ranks:g} = {engines + ranks:g} GPUs, and the cluster has {sum(nodes):g}; lower "
            "actors.count, engine.tensor_parallel or learner.layout, or use cluster=one_gpu"
        )
    if config.actors.num_gpus > max(nodes, default=0):
        raise UserError(
            f"an engine of actors.num_gpus={config.actors.num_gpus:g} has to be on one node, and the largest has "
            f"{max(nodes, default=0):g} GPUs; lower engine.tensor_parallel"
        )


def reserve(actors: ActorsConfig) -> Any:
    """Where one rollout actor goes: its GPUs in a placement group of its own, so that if it dies it finds them again.

    The group ends with the driver, or by `release`.
    """
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not actors.num_gpus:
        return None
    return PlacementGroupSchedulingStrategy(placement_group([{"CPU": actors.num_cpus, "GPU": actors.num_gpus}]))


def release(place: Any) -> None:
    """What `reserve` gave is free for others again."""
    from ray.util.placement_group import remove_placement_group

    if place is not None:
        remove_placement_group(place.placement_group)
