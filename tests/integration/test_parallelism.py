"""A layout changes where a model is trained, not what: losses, gradients and weights are those of one process."""

import dataclasses

import numpy as np
import pytest

from tests.learner_ranks import learner_job, made_windows, run_ranks, share_of
from tests.model_families import build

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS = 5
WINDOWS = made_windows(12)
# Tied embeddings, layers with and without experts, latent attention.
LATENT = "deepseek_v3, groups, yarn"
MODELS = ("llama", "glm4_moe", LATENT)
SPLIT = ("llama", "glm4_moe")  # over tensor ranks: latent attention is refused there
LAYOUTS = [
    ({"tensor": 2}, SPLIT),
    ({"pipeline": 2}, MODELS),
    ({"data": 2}, MODELS),
    ({"data": 2, "expert": 2}, ("glm4_moe", LATENT)),
    ({"tensor": 2, "expert": 2}, ("glm4_moe",)),
    ({"tensor": 2, "pipeline": 2}, SPLIT),
    ({"context": 2}, SPLIT),
    ({"tensor": 2, "context": 2}, SPLIT),
    ({"context": 2, "data": 2, "expert": 2}, ("glm4_moe",)),
]


def train(job, rank, device, folders):
    """By model: the metrics of STEPS steps on WINDOWS, whole gradients of the first one, weights after the last."""
    from klong_rl.objectives import build_objective
    from learners import model, step
    from learners.forward import Batch

    by_id = {window.id: window for window in WINDOWS}
    share = share_of(job, WINDOWS)
    answers = {}
    for name, folder in folders.items():
        one = model.build(dataclasses.replace(job, model=str(folder)))
        parts = []
        for _ in range(STEPS):
            batches = [Batch([by_id[i] for i in ids], job.pad_to, device, job.window_pad) for ids in share]
            parts.append(step.train_step(one, batches, build_objective("klong"), 1.0, version=1))
        answers[name] = parts, {name: tensor.numpy() for name, tensor in model.export(one)}
    return answers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("model") for name in MODELS}
    for name, folder in folders.items():
        build(name, folder)
    return folders


def trained(folders, **settings):
    """By model: the merged metrics of each step, and the weights after the last."""
    from learners.step import merge

    answers = run_ranks(learner_job(**settings), train, folders)
    return {
        name: ([merge(parts) for parts in zip(*(a[name][0] for a in answers), strict=True)], answers[0][name][1])
        for name in folders
    }


@pytest.fixture(scope="module")
def alone(folders):
    return trained(folders)


@pytest.mark.parametrize(("layout", "models"), LAYOUTS, ids=str)
def test_five_steps_are_those_of_one_process(folders, alone, layout, models):
    spread = trained({name: folders[name] for name in models}, **layout)
    for name in models:
        (steps, weights), (wanted_steps, wanted) = spread[name], alone[name]
        for number, (ours, theirs) in enumerate(zip(steps, wanted_steps, strict=True)):
            for metric in ("loss", "grad_norm"):
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-5, abs=1e-5), (name, number, metric)
            assert (ours["action_tokens"], ours["windows"]) == (theirs["action_tokens"], len(WINDOWS))
        assert weights.keys() == wanted.keys()
        for tensor, value in wanted.items():
            np.testing.assert_allclose(weights[tensor], value, atol=1e-5, rtol=0, err_msg=f"{name} {tensor}")


def test_recomputed_activations_change_nothing(folders, alone):
    again = trained(folders, recompute=0.5)
    for name in MODELS:
        for tensor, value in alone[name][1].items():
            np.testing.assert_array_equal(again[name][1][tensor], value, err_msg=f"{name} {tensor}")
