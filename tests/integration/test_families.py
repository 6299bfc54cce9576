"""Every model family against transformers on the same weights: log-probs, and the tensors that come back out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.learner_ranks import learner_job, made_windows, run_ranks
from tests.model_families import CONFIGS, SIZES, build

# One process builds them all, one after the other: some half a minute.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

WINDOWS = made_windows(8, longest=200)


def logprobs_and_tensors(job, rank, device, folders):
    """By model: its log-probs of WINDOWS, packed in one row, and its exported tensors, written to a folder too."""
    from learners import model, step
    from learners.forward import Batch, window_logprobs

    answers = {}
    for name, folder in folders.items():
        model.read_hf_config(str(folder))
        one = model.build(dataclasses.replace(job, model=str(folder)))
        batch = Batch(WINDOWS, job.pad_to, device)
        tensors = dict(model.export(one))
        model.save_hf(str(folder), folder / "again", tensors)
        logprobs = window_logprobs(batch, step.logprobs(one, [batch], 1.0)[0])
        answers[name] = logprobs, {tensor_name: tensor.numpy() for tensor_name, tensor in tensors.items()}
    return answers


def refusal(job, rank, device):
    from klong_rl.errors import UserError
    from learners import model

    with pytest.raises(UserError) as refused:
        model.build(job)
    return str(refused.value)


def test_a_model_with_tensors_that_would_be_left_out_is_refused(tmp_path):
    """Llama with biases: the bridge builds those of queries, keys and values alone."""
    LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)).save_pretrained(tmp_path)
    message = run_ranks(learner_job(tmp_path), refusal)[0]
    assert "4 of its tensors have no place" in message and "self_attn.o_proj.bias" in message


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("model") for name in CONFIGS}
    return folders, {name: build(name, folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def ours(models):
    return run_ranks(learner_job(), logprobs_and_tensors, models[0])[0]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logprobs_are_those_of_transformers(models, ours, name):
    model, (logprobs, _) = models[1][name], ours[name]
    for window in WINDOWS:
        tokens = torch.from_numpy(window.tokens_T.astype(np.int64))[None]
        theirs = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].numpy()
        targets = window.targets_T == 1
        np.testing.assert_allclose(logprobs[window.id][targets], theirs[targets[1:]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tensors_that_went_in_come_out(models, ours, name):
    saved = {}
    for file in Path(models[0][name]).glob("*.safetensors"):
        saved |= load_file(file)
    _, exported = ours[name]
    assert exported.keys() == saved.keys()
    for tensor_name, tensor in saved.items():
        np.testing.assert_array_equal(exported[tensor_name], tensor.numpy(), err_msg=tensor_name)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_folder_that_is_written(models, ours, name):
    model, again = models[1][name], AutoModelForCausalLM.from_pretrained(models[0][name] / "again", dtype=torch.float32)
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[tensor_name], tensor) for tensor_name, tensor in theirs.items())
