"""Too few GPUs, and engines that can't be cut, are refused with the numbers."""

import pytest

from klong_rl.cli import load_config
from klong_rl.config import ActorsConfig, EngineConfig, LearnerConfig, RunConfig
from klong_rl.errors import UserError
from klong_rl.gpus import check_cluster, check_tensor_parallel
from klong_rl.learner_config import LayoutConfig

MODEL = {"num_attention_heads": 12, "num_key_value_heads": 4}


def split(count=1, engine_gpus=1.0, **layout) -> RunConfig:
    layout = LayoutConfig(**{"data": 1, **layout})
    return RunConfig(
        engine=EngineConfig(tensor_parallel=int(engine_gpus)),
        actors=ActorsConfig(count=count, num_gpus=engine_gpus),
        learner=LearnerConfig(num_gpus=1, layout=layout),
    )


def test_two_gpus_hold_one_engine_and_one_rank_and_no_more():
    check_cluster(split(), [2])
    with pytest.raises(UserError, match=r"2 engines of actors.num_gpus=1 .* 2 \+ 1 = 3 GPUs, and the cluster has 2"):
        check_cluster(split(count=2), [2])
    with pytest.raises(UserError, match=r"1 \+ 4 = 5 GPUs, and the cluster has 2"):
        check_cluster(split(tensor=2, data=2), [2])


def test_an_engine_has_to_be_on_one_node():
    check_cluster(split(engine_gpus=4), [4, 1])
    with pytest.raises(UserError, match="actors.num_gpus=4 has to be on one node, and the largest has 3 GPUs"):
        check_cluster(split(engine_gpus=4), [3, 3])


def test_a_cpu_needs_none():
    check_cluster(RunConfig(), [0])


@pytest.mark.parametrize("ranks", [1, 2, 4, 12])
def test_heads_that_can_be_shared(ranks):
    check_tensor_parallel(split(engine_gpus=ranks), MODEL)


def test_heads_that_can_not():
    with pytest.raises(UserError, match="tensor_parallel=5 does not divide num_attention_heads=12"):
        check_tensor_parallel(split(engine_gpus=5), MODEL)
    with pytest.raises(UserError, match="tensor_parallel=6 and num_key_value_heads=4: neither divides"):
        check_tensor_parallel(split(engine_gpus=6), MODEL)


def test_split_gives_an_engine_as_many_gpus_as_it_is_cut_in():
    config, _ = load_config(["cluster=split", "engine.tensor_parallel=2", "actors.count=2"])
    assert config.actors.num_gpus == 2
    with pytest.raises(UserError, match=r"4 \+ 1 = 5 GPUs, and the cluster has 4"):
        check_cluster(config, [4])


def test_a_cut_engine_on_a_shared_gpu_is_refused():
    with pytest.raises(UserError, match="engine.tensor_parallel=2 takes as many GPUs, and actors.num_gpus=0.4"):
        load_config(["cluster=one_gpu", "engine.tensor_parallel=2"])
