"""What a fine-tuning refuses once it knows its model, before anything is started."""

import pytest

from klong_rl import gpu_memory
from klong_rl.errors import UserError
from klong_rl.models import nano
from klong_rl.sft import FineTuning, load_sft_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "nano"
    nano.build(folder, ["one two"], seed=0)
    return folder


def refusal(folder, tmp_path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        FineTuning(load_sft_config(["data=d", *overrides]), tmp_path)._check_learner(folder)
    return str(caught.value)


def test_a_layout_that_does_not_fit_the_model(folder, tmp_path):
    assert "layout.tensor=3 does not divide num_attention_heads=4" in refusal(
        folder, tmp_path, "learner.layout.tensor=3"
    )


def test_a_gpu_that_a_rank_does_not_fit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "gpu_total", lambda: 80 * gpu_memory.GIB)
    said = refusal(folder, tmp_path, "learner.device=cuda", "learner.token_budget=10000000")
    assert "learner.gpu_memory=0.9 of 80.0 GiB is 72.0 GiB" in said and "activations" in said
