"""Which folders are refused as a model."""

import json

import pytest

from klong_rl.errors import UserError
from learners.model import read_hf_config


def folder(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a Hugging Face folder"):
        read_hf_config(str(tmp_path))


@pytest.mark.parametrize(
    "rope", [{"rope_parameters": {"rope_type": "llama3"}}, {"rope_scaling": {"type": "llama3", "factor": 8.0}}]
)
def test_scaled_positions_are_refused_rather_than_built_unscaled(tmp_path, rope):
    with pytest.raises(UserError, match="rope_type='llama3'"):
        read_hf_config(folder(tmp_path, **rope))


@pytest.mark.parametrize("rope", [{}, {"rope_parameters": {"rope_type": "default"}}, {"rope_scaling": None}])
def test_plain_positions_pass(tmp_path, rope):
    assert read_hf_config(folder(tmp_path, vocab_size=512, **rope))["vocab_size"] == 512
