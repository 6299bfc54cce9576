"""What fits on one GPU is let through, what doesn't is refused with the sum; the parts are those counted by hand."""

from dataclasses import replace

import pytest

from klong_rl import gpu_memory
from klong_rl.config import EngineConfig, LearnerConfig, RunConfig
from klong_rl.errors import UserError
from klong_rl.gpu_memory import GIB, ModelShape
from klong_rl.learner_config import LayoutConfig
from klong_rl.models import nano
from learners import gpu, publish

CARD = 80 * GIB
# 1.5 billion parameters in the shape of Qwen2.5-1.5B.
BIG = ModelShape(
    parameters=1_543_714_304,
    layers=28,
    hidden=1536,
    query_width=1536,
    kv_width=256,
    qk_norm=False,
    ffn=8960,
    vocab=151_936,
)


def one_gpu(**learner) -> RunConfig:
    on_gpu = {"device": "cuda", "dtype": "bfloat16", "gpu_memory": 0.4, "layout": LayoutConfig(data=1)}
    return RunConfig(
        engine=EngineConfig(dtype="bfloat16", gpu_memory=0.4, weight_transfer="ipc"),
        learner=LearnerConfig(**{**on_gpu, **learner}),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "nano"
    nano.build(path, ["cat amber"], seed=0)
    return path


def test_a_small_model_fits_beside_its_engine(folder):
    gpu_memory.check(one_gpu(), folder, CARD)


def test_shares_that_are_too_much_together_are_refused_with_the_sum(folder):
    config = one_gpu(gpu_memory=0.6)
    with pytest.raises(UserError, match=r"0.4 \(32.0 GiB\).*0.6 \(48.0 GiB\) \+ 1.5 GiB.* = 81.5 GiB.*80.0 GiB; lower"):
        gpu_memory.check(config, folder, CARD)


def test_engines_are_counted_and_those_elsewhere_are_not(folder):
    config = one_gpu()
    config.actors.count = 2
    with pytest.raises(UserError, match=r"2 x engine.gpu_memory=0.4 \(32.0 GiB\).* = 97.5 GiB"):
        gpu_memory.check(config, folder, CARD)
    config.engine.weight_transfer = "klong_shared_memory"
    gpu_memory.check(config, folder, CARD)


def test_a_learner_over_its_share_is_refused_with_its_parts(folder):
    config = one_gpu(token_budget=10_000_000)
    with pytest.raises(UserError, match=r"0.4 of 80.0 GiB is 32.0 GiB.*activations 306.\d GiB.*lower learner.token"):
        gpu_memory.check(config, folder, CARD)


def test_a_reference_is_counted_where_the_objective_needs_one(folder):
    config = one_gpu()
    needed = sum(gpu_memory.learner_bytes(ModelShape.read(folder), config.learner).values())
    config.learner.gpu_memory = (needed + 1000) / CARD
    gpu_memory.check(config, folder, CARD)
    config.learner.objective = "grpo"
    with pytest.raises(UserError, match="the learner needs about"):
        gpu_memory.check(config, folder, CARD)


def test_an_engine_over_its_share_is_refused_with_its_parts(folder):
    config = one_gpu()
    config = replace(config, engine=replace(config.engine, max_model_len=10_000_000))
    with pytest.raises(UserError, match=r"engine.*KV cache of one sequence 38.\d GiB.*lower engine.max_model_len"):
        gpu_memory.check(config, folder, CARD)


def test_the_shape_is_read_off_the_folder(folder):
    embeddings, block = 2 * 512 * 256, 4 * 256 * 256 + 3 * 256 * 688 + 2 * 256
    assert ModelShape.read(folder) == ModelShape(
        parameters=embeddings + 4 * block + 256,
        layers=4,
        hidden=256,
        query_width=256,
        kv_width=256,
        qk_norm=False,
        ffn=688,
        vocab=512,
    )


def test_a_model_s_state_takes_eighteen_bytes_a_parameter_beside_what_is_published():
    learner = LearnerConfig(dtype="bfloat16", layout=LayoutConfig(data=1))
    parts = gpu_memory.learner_bytes(BIG, learner)
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 18 * BIG.parameters
    assert parts["published copies"] == 4 * BIG.parameters
    shared = gpu_memory.learner_bytes(BIG, replace(learner, layout=LayoutConfig(data=4)))
    assert shared["optimizer"] == parts["optimizer"] // 4


def test_ranks_share_what_is_split_and_rank_0_alone_publishes():
    learner = LearnerConfig(dtype="bfloat16", layout=LayoutConfig(data=1))
    whole = gpu_memory.learner_bytes(BIG, learner)
    cut = gpu_memory.learner_bytes(BIG, replace(learner, layout=LayoutConfig(data=1, tensor=2, pipeline=2, context=2)))
    assert cut["weights"] == whole["weights"] // 4 and cut["gradients"] == whole["gradients"] // 4
    assert cut["optimizer"] == whole["optimizer"] // 8
    assert cut["activations"] == whole["activations"] // 4
    assert cut["published copies"] == whole["published copies"]
    engine = EngineConfig(dtype="bfloat16", max_model_len=4096)
    halves = gpu_memory.engine_bytes(BIG, replace(engine, tensor_parallel=2))
    assert halves["weights"] == gpu_memory.engine_bytes(BIG, engine)["weights"] // 2


def test_what_is_added_up_is_what_the_learner_does():
    assert gpu_memory.LOGITS_AT_ONCE == gpu.LOGITS_AT_ONCE
    assert gpu_memory.PUBLISHED_COPIES == publish.KEPT


def test_recomputed_activations_are_what_enters_each_layer_and_one_layer_in_full():
    learner = LearnerConfig(dtype="bfloat16", layout=LayoutConfig(data=1), token_budget=32_768)
    kept = gpu_memory.learner_bytes(BIG, learner)["activations"]
    recomputed = gpu_memory.learner_bytes(BIG, replace(learner, recompute=1.0))["activations"]
    entering = 2 * BIG.hidden * BIG.layers * 32_768
    assert recomputed == kept // BIG.layers + entering
    half = gpu_memory.learner_bytes(BIG, replace(learner, recompute=0.5))["activations"]
    assert half == kept // 2 + kept // BIG.layers + entering // 2


def test_a_head_of_one_chunk_holds_its_logits_and_its_gradient_in_the_model_s_dtype():
    learner = LearnerConfig(dtype="bfloat16", layout=LayoutConfig(data=1), token_budget=8192)
    head = BIG.vocab * BIG.hidden
    assert gpu_memory.learner_bytes(BIG, learner)["head"] == 2 * BIG.vocab * 8192 + 2 * head
    longer = gpu_memory.learner_bytes(BIG, replace(learner, token_budget=32_768))["head"]
    assert longer == 2 * gpu_memory.LOGITS_AT_ONCE + 6 * head


def test_norms_of_queries_and_keys_keep_what_enters_them():
    learner = LearnerConfig(dtype="bfloat16", layout=LayoutConfig(data=1), token_budget=1000)
    plain, normed = (
        gpu_memory.learner_bytes(replace(BIG, qk_norm=has), learner)["activations"] for has in (False, True)
    )
    assert normed - plain == 2 * 1000 * BIG.layers * (BIG.query_width + BIG.kv_width)
