"""Objectives by name and by import path."""

import pytest
import torch

from klong_rl.advantages import advantage_rule, grpo, klong, rloo
from klong_rl.cli import load_config
from klong_rl.errors import UserError
from klong_rl.objectives import build_objective
from klong_rl.objectives.clipped import clipped
from tests.unit.objectives.tokens import target_tokens


def test_a_recipe_gives_its_settings_and_options_go_before_them():
    dapo = build_objective("dapo", {"kl_coefficient": 0.1})
    assert (dapo.formula, dapo.formula_options) == (clipped, {"clip_high": 0.28})
    assert (dapo.aggregation, dapo.kl_coefficient, dapo.needs) == ("token_mean", 0.1, {"reference"})
    assert build_objective("dapo", {"clip_high": 0.5}).formula_options == {"clip_high": 0.5}


def test_a_function_of_the_users_is_swapped_in_by_its_import_path():
    config, _ = load_config(
        [
            "learner.objective=examples.spo.spo",
            "+learner.objective_options.epsilon=0.3",
            "+learner.objective_options.aggregation=window_sum",
        ]
    )
    tokens = target_tokens()
    result = build_objective(config.learner.objective, config.learner.objective_options)(tokens)
    ratio = (tokens.logprobs_N - tokens.sampler_logprobs_N).exp()
    advantage = tokens.advantages_W[tokens.window_N]
    penalty = advantage.abs() / 0.6 * (ratio - 1) ** 2
    torch.testing.assert_close(result.loss_sum, (penalty - ratio * advantage).sum())
    torch.testing.assert_close(result.sums["spo_penalty"], penalty.detach().sum())
    assert result.weight.item() == 4
    assert advantage_rule(config.learner) is klong


def not_an_objective(tokens, log_ratio_N):
    return log_ratio_N.sum()


def breaks_without_tokens(tokens, log_ratio_N):
    return log_ratio_N.max()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kong", {}, "'kong' can't be imported.*klong"),
        ("klong_rl.objectives.clipped.clip", {}, "can't be imported"),
        ("klong", {"clip": 0.2}, r"no option \['clip'\]; its own are \['clip_high', 'clip_low'\]"),
        ("klong", {"aggregation": "mean"}, "aggregation='mean' is not one of"),
        ("klong", {"importance": "some"}, "importance='some' is not one of"),
        ("klong", {"clip_low": 2.0}, "clip_low=2.0"),
        ("gspo", {"clip_high": -1.0}, "clip_high=-1.0"),
        ("klong", {"clip_low": "wide"}, "TypeError"),
        ("dr_grpo", {"length_scale": 0}, "length_scale=0 must be above 0"),
        ("klong", {"importance": "masked", "importance_low": 1.5}, "importance_low=1.5"),
        ("sft", {"scale": 1}, "scale"),
        (f"{__name__}.not_an_objective", {}, "gave Tensor, not a TokenLoss"),
        (f"{__name__}.breaks_without_tokens", {}, "without target tokens"),
    ],
)
def test_a_wrong_objective_is_a_user_error(name, options, message):
    with pytest.raises(UserError, match=message):
        build_objective(name, options)


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ([], klong),
        (["learner.objective=dapo"], grpo),
        (["learner.objective=dapo", "learner.advantage=rloo"], rloo),
        (["learner.advantage=klong_rl.advantages.grpo"], grpo),
    ],
)
def test_an_objective_brings_its_advantage_unless_another_is_named(overrides, rule):
    assert advantage_rule(load_config(overrides)[0].learner) is rule


def test_a_wrong_advantage_is_refused_with_the_configuration():
    with pytest.raises(UserError, match="learner.advantage=mean can't be imported.*dr_grpo"):
        load_config(["learner.advantage=mean"])
