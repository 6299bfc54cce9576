"""A layout that doesn't fit is refused with the numbers, before anything starts."""

import pytest

from klong_rl.errors import UserError
from learners.layout import ParallelLayout

MODEL = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 512,
    "intermediate_size": 96,
}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ParallelLayout(tensor=3), "layout.tensor=3 does not divide num_attention_heads=8"),
        (ParallelLayout(tensor=8), "layout.tensor=8 does not divide num_key_value_heads=4"),
        (ParallelLayout(pipeline=4), "layout.pipeline=4 does not divide num_hidden_layers=6"),
        (ParallelLayout(expert=2, data=2), "layout.expert=2 does not divide the number of experts=1"),
        (ParallelLayout(context=16), "layout.context=16 with layout.tensor=1 cuts a row in .* = 32 pieces"),
        (ParallelLayout(data=0), "layout.data=0 must be at least 1"),
    ],
)
def test_refusal_names_the_numbers(layout, message):
    with pytest.raises(UserError, match=message):
        layout.check(MODEL, pad_to=16)


def test_latent_attention_is_not_split_over_context_ranks():
    with pytest.raises(UserError, match="layout.context=2.*latent attention .deepseek_v3.; use context=1"):
        ParallelLayout(context=2).check(MODEL | {"kv_lora_rank": 4, "model_type": "deepseek_v3"}, pad_to=16)


def test_rows_must_split_over_tensor_ranks():
    with pytest.raises(UserError, match="layout.tensor=4 does not divide pad_to=2"):
        ParallelLayout(tensor=4).check(MODEL, pad_to=2)


def test_experts_must_fit_the_ranks():
    with pytest.raises(UserError, match="layout.expert=4 does not divide tensor x context x data=2"):
        ParallelLayout(expert=4, data=2).check(MODEL | {"num_experts": 8}, pad_to=16)


def test_experts_are_cut_only_where_they_are_not_spread():
    model = MODEL | {"n_routed_experts": 8, "moe_intermediate_size": 3}
    ParallelLayout(tensor=2, expert=2).check(model, pad_to=16)
    with pytest.raises(UserError, match="layout.expert_tensor=2 does not divide moe_intermediate_size=3"):
        ParallelLayout(tensor=2).check(model, pad_to=16)


def test_a_fitting_layout_passes():
    layout = ParallelLayout(tensor=4, pipeline=3, data=2)
    layout.check(MODEL, pad_to=16)
    assert layout.world == 24
