"""Which folders are refused as a model, and how the learning rate goes."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from klong_rl.config import LearnerConfig
from klong_rl.errors import UserError
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from learners import model
from learners.job import LearnerJob
from learners.model import read_hf_config


def folder(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a Hugging Face folder"):
        read_hf_config(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is no family"),
        (
            {"model_type": "qwen3", "rope_parameters": {"rope_type": "yarn"}},
            "rope_type='yarn' can't be built for qwen3",
        ),
        ({"model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_type='linear' can't"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
            "the model has .*'low_freq_factor': 2.0",
        ),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act='gelu'"),
        (
            {"model_type": "mixtral", "sliding_window": 4096, "max_position_embeddings": 32768},
            "sliding_window=4096 can't",
        ),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "every layer has to have experts"),
        ({"model_type": "glm4_moe", "num_experts_per_tok": 8, "norm_topk_prob": False}, "norm_topk_prob=false"),
        (
            {"model_type": "deepseek_v3", "num_experts_per_tok": 6, "n_group": 8, "topk_group": 2},
            "num_experts_per_tok=6 over topk_group=2",
        ),
    ],
)
def test_what_would_be_built_wrongly_is_refused_with_the_folder_and_the_setting(tmp_path, config, message):
    with pytest.raises(UserError, match=f"{tmp_path.name}.*{message}"):
        read_hf_config(folder(tmp_path, **config))


@pytest.mark.parametrize("rope", [{}, {"rope_parameters": {"rope_type": "default"}}, {"rope_scaling": None}])
def test_plain_positions_pass(tmp_path, rope):
    assert read_hf_config(folder(tmp_path, model_type="llama", vocab_size=512, **rope))["vocab_size"] == 512


def test_a_large_model_is_saved_in_shards_that_an_index_names(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "SHARD_SIZE", "1KB")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    # As Megatron exports them: parts of one buffer, some transposed.
    tensors = {f"layer{i}": part.view(20, 10).T for i, part in enumerate(torch.randn(600).split(200))}
    model.save_hf(str(tmp_path / "source"), tmp_path / "hf", tensors)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == tensors.keys() and len(set(index.values())) == 3
    for name, file in index.items():
        assert torch.equal(load_file(tmp_path / "hf" / file)[name], tensors[name])


def test_rows_of_a_padded_vocabulary_are_written(tmp_path):
    source, written = tmp_path / "source", tmp_path / "written"
    source.mkdir()
    padded = torch.arange(12.0).reshape(4, 3)
    model.save_hf(str(source), written, {"lm_head.weight": padded[:3]})
    assert torch.equal(load_file(written / "model.safetensors")["lm_head.weight"], padded[:3])


def test_latent_attention_is_not_split_over_the_tensor_ranks_of_a_cpu(tmp_path):
    sizes = {"num_attention_heads": 8, "num_hidden_layers": 2, "vocab_size": 512, "intermediate_size": 96}
    config = {"model_type": "deepseek_v3", "kv_lora_rank": 24, "num_experts_per_tok": 8, **sizes}
    learner = LearnerConfig(layout=LayoutConfig(tensor=2, data=1))
    with pytest.raises(UserError, match="layout.tensor=2 can't be trained on a CPU"):
        model.check(LearnerJob(folder(tmp_path, **config), learner))


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_the_learning_rate_goes_as_that_of_torchs_own_schedulers(decay):
    settings = OptimizerConfig(lr=1e-3, warmup_steps=4, decay=decay, decay_steps=14, min_lr=1e-4)
    ours = SimpleNamespace(param_groups=[{"lr": 0.0}])
    scheduler = model._scheduler(settings, ours)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    after = {
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(theirs, 1.0, settings.min_lr / settings.lr, 10),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 10, settings.min_lr),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(theirs, 1.0),
    }[decay]()
    rates, expected = [], [settings.lr * update / 4 for update in range(1, 5)]
    for _ in range(14):
        scheduler.step(1)
        rates.append(ours.param_groups[0]["lr"])
        if len(rates) > 4:
            theirs.step()
            after.step()
            expected.append(theirs.param_groups[0]["lr"])
    assert rates == pytest.approx(expected, abs=1e-12)
    scheduler.step(5)
    assert ours.param_groups[0]["lr"] == pytest.approx(settings.lr if decay == "constant" else settings.min_lr)
