"""A learner group of two data-parallel ranks against transformers and plain torch, through checkpoints and a death.

The model is nano (3.3 M parameters). A group takes seconds to start, so the tests share two, in the order of this file:
the second one resumes what the first one saved, and is then killed.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from klong_rl import learned
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, WindowRef
from klong_rl.config import LearnerConfig
from klong_rl.errors import LearnerFailure, UserError
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from klong_rl.models import nano
from klong_rl.types import EpisodeSpec, Outcome, Task, Verdict
from learners.group import LearnerGroup
from learners.job import LearnerJob
from learners.publish import WeightFolder
from tests.learner_ranks import made_windows

pytestmark = pytest.mark.integration

# With Adam's usual eps a first step is lr x sign(gradient), and rounding flips the sign of gradients that are about 0.
ADAMW = OptimizerConfig(lr=1e-3, weight_decay=0.1, clip_grad=0.5, eps=1e-5)
# Small, so that each rank has several micro-batches of unlike sizes.
TOKEN_BUDGET = 256


@pytest.fixture(scope="module")
def cluster():
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "nano"
    nano.build(path, ["read the file and write the answer"], seed=0, vocab_size=512)
    return path


def start(folder, tmp_path_factory, buffer=None, **layout):
    learner = LearnerConfig(
        layout=LayoutConfig(**{"data": 1, **layout}),
        optimizer=ADAMW,
        token_budget=TOKEN_BUDGET,
        objective_options={"kl_coefficient": 0.1, "entropy_coefficient": 0.01},
        num_cpus=0.5,
    )
    weights = WeightFolder(tmp_path_factory.mktemp("published") / "weights")
    job = LearnerJob(str(folder), learner, logprobs=str(folder / learned.FOLDER))
    return LearnerGroup(job, weights, buffer, setup_deadline_s=120, call_deadline_s=120)


@pytest.fixture(scope="module")
def group(cluster, folder, tmp_path_factory):
    group = start(folder, tmp_path_factory, data=2)
    yield group
    group.shutdown()


@pytest.fixture(scope="module")
def windows():
    """Nine, so that the ranks' shares differ."""
    return made_windows(9)


def refs(windows):
    return [WindowRef.of(window) for window in windows]


def target_logprobs(model, window):
    """The float32 log-probs of a window's targets, by transformers."""
    tokens = torch.from_numpy(window.tokens_T.astype(np.int64))[None]
    logprobs = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return logprobs[torch.from_numpy(window.targets_T[1:]) > 0]


def published(group, version):
    return load_file(group.publish(version)["path"])


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def target_entropies(model, windows):
    """Of the policy where each target token was sampled."""
    entropies = []
    for window in windows:
        log_p = model(torch.from_numpy(window.tokens_T).long()[None]).logits[0, :-1].log_softmax(-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1)[torch.from_numpy(window.targets_T[1:]) > 0])
    return torch.cat(entropies)


def test_logprobs_are_those_of_transformers(group, folder, windows):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = group.logprobs(refs(windows), windows)
    assert ours.keys() == {window.id for window in windows}
    for window in windows:
        theirs = target_logprobs(model, window).detach().numpy()
        np.testing.assert_allclose(ours[window.id][window.targets_T > 0], theirs, atol=1e-4, rtol=0)


def test_a_packed_window_is_as_if_it_were_alone(group, windows):
    packed = group.logprobs(refs(windows), windows)
    for window in windows:
        alone = group.logprobs([WindowRef.of(window)], [window])[window.id]
        np.testing.assert_allclose(packed[window.id], alone, atol=1e-5, rtol=0)


def test_an_sft_step_is_the_one_of_plain_torch(group, folder, windows):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": ADAMW.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=ADAMW.lr,
        betas=(ADAMW.beta1, ADAMW.beta2),
        eps=ADAMW.eps,
    )
    loss = -torch.cat([target_logprobs(model, window) for window in windows]).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.clip_grad)
    adamw.step()

    metrics = group.sft_step(windows)

    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert norm > ADAMW.clip_grad, "the gradient isn't clipped, so clipping isn't tested"
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert_same(published(group, 1), dict(model.state_dict()), 1e-5)


def test_a_saved_folder_is_read_by_transformers(group, folder, windows, tmp_path):
    group.save_hf(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert_same(dict(model.state_dict()), published(group, 2), 0)
    ours = group.logprobs(refs(windows), windows)
    theirs = target_logprobs(model, windows[0]).detach().numpy()
    np.testing.assert_allclose(ours["w0"][windows[0].targets_T > 0], theirs, atol=1e-4, rtol=0)
    ids = [AutoTokenizer.from_pretrained(path).encode("write the answer") for path in (tmp_path / "hf", folder)]
    assert ids[0] == ids[1]


def kept_logprobs(folder, step, windows):
    """Of each window. The ranks write beside whatever they do next."""
    give_up = time.monotonic() + 60
    names = {window.id for window in windows}
    while (kept := learned.read_learned(folder, step, names)).keys() != names:
        assert time.monotonic() < give_up, f"of {names} only {set(kept)} were kept"
        time.sleep(0.05)
    return kept


def test_a_klong_step_reports_what_it_trained(group, windows, folder, tmp_path):
    current = group.logprobs(refs(windows), windows)
    group.save_hf(tmp_path / "current")
    step = group.train_step(0, version=1, refs=refs(windows), windows=windows)

    kept = kept_logprobs(folder / learned.FOLDER, 0, windows)
    for window in windows:
        np.testing.assert_allclose(kept[window.id], current[window.id][window.targets_T > 0], atol=1e-5, rtol=0)
    gaps = []
    for window in windows:
        targets = window.targets_T > 0
        sampled_now = np.arange(targets.sum()) >= window.versions[0][1]
        gaps.append(np.abs(current[window.id] - window.logprobs_T)[targets][sampled_now])
    gaps = np.concatenate(gaps)
    n_targets = sum(window.n_targets() for window in windows)
    assert (step["action_tokens"], step["windows"], step["logprob_gap_tokens"]) == (n_targets, 9, len(gaps))
    assert step["logprob_gap_mean"] == pytest.approx(gaps.mean(), rel=1e-3)
    assert step["logprob_gap_max"] == pytest.approx(gaps.max(), rel=1e-3)
    ratios = np.concatenate([np.exp(current[w.id] - w.logprobs_T)[w.targets_T > 0] for w in windows])
    assert step["ratio_mean"] == pytest.approx(ratios.mean(), rel=1e-3)
    assert step["ess_fraction"] == pytest.approx(ratios.sum() ** 2 / (ratios**2).sum() / n_targets, rel=1e-3)
    assert np.log(step["ratio_p99"]) == pytest.approx(np.quantile(np.log(ratios), 0.99), rel=0.1)
    versions = [version for w in windows for version, count in w.versions for _ in range(count)]
    assert step["staleness_mean"] == pytest.approx(1 - np.mean(versions))
    # The reference is the folder that the group started from, one SFT step ago.
    reference = AutoModelForCausalLM.from_pretrained(folder)
    away = [target_logprobs(reference, w).detach().numpy() - current[w.id][w.targets_T > 0] for w in windows]
    k3 = np.concatenate([np.exp(a) - a - 1 for a in away])
    assert step["kl_reference_k3"] == pytest.approx(k3.mean(), rel=1e-3) and k3.mean() > 0
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "current")
    assert step["entropy"] == pytest.approx(target_entropies(trained, windows).mean().item(), rel=1e-4)


@pytest.fixture(scope="module")
def buffer(windows, tmp_path_factory):
    """A run's buffer in which `windows` are ready."""
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as server:
        address = BufferAddress(server.url, "learner")
        asyncio.run(make_ready(address, windows))
        yield address


async def make_ready(address, windows):
    task = Task(id="t", family="f", instruction="i", image="none")
    spec = EpisodeSpec(id="e", group="g", group_size=1, stage=1, purpose="train", task=task, timeout_s=1.0, max_turns=1)
    async with await Buffer.connect(address) as buffer:
        await buffer.admit(spec)
        claim = await buffer.claim("actor")
        await buffer.seal("e", claim.epoch, Outcome(kind="submitted"))
        await buffer.verdict("e", claim.epoch, Verdict(score=1.0))
        await buffer.close_group("g", windows)


@pytest.fixture(scope="module")
def second_group(cluster, folder, buffer, tmp_path_factory):
    return start(folder, tmp_path_factory, buffer, data=2)


def test_a_checkpoint_resumes_bit_for_bit(group, second_group, windows, tmp_path):
    """In another group, whose ranks fetch the windows from the buffer."""
    for step in (1, 2):
        group.train_step(step, 1, refs(windows), windows)
    begun = published(group, 2)
    group.begin_save(tmp_path / "step-2")
    straight = group.train_step(3, 1, refs(windows), windows)  # while step 2 is being written
    wanted = published(group, 3)
    assert group.finish_save()

    assert second_group.load(tmp_path / "step-2" / "megatron") == 2
    resumed = second_group.train_step(3, 1, refs(windows))

    assert (resumed["loss"], resumed["grad_norm"]) == (straight["loss"], straight["grad_norm"])
    assert_same(published(second_group, 3), wanted, 0)
    assert sorted(path.name for path in (tmp_path / "step-2").iterdir()) == ["hf", "megatron"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "step-2" / "hf", dtype=torch.float32)
    assert_same(dict(model.state_dict()), begun, 0)


def test_a_killed_rank_is_named_and_its_group_is_over(second_group, windows):
    os.kill(second_group.pids()[1], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(LearnerFailure, match="rank 1 failed in train_step"):
        second_group.train_step(4, 1, refs(windows), windows)
    assert time.monotonic() - started < 60
    with pytest.raises(LearnerFailure, match="the group has ended"):
        second_group.publish(5)
    second_group.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor": 2}, {"pipeline": 2}])
def test_other_layouts_train_the_same(group, folder, windows, layout, tmp_path, tmp_path_factory):
    """From one checkpoint, saved under two data ranks, a step of each layout is the same but for rounding."""
    group.begin_save(tmp_path)
    group.finish_save()
    step = group.load(tmp_path / "megatron") + 1
    metrics = group.train_step(step, 1, refs(windows), windows)
    wanted = published(group, 4)

    other = start(folder, tmp_path_factory, **layout)
    other.load(tmp_path / "megatron")
    ours = other.train_step(step, 1, refs(windows), windows)

    for name in ("loss", "grad_norm", "action_tokens", "windows", "logprob_gap_mean", "kl_reference_k3", "entropy"):
        assert ours[name] == pytest.approx(metrics[name], rel=1e-3), name
    assert_same(published(other, 4), wanted, 1e-5)
    other.shutdown()


def test_a_layout_that_does_not_fit_is_refused_before_anything_starts(folder, tmp_path_factory):
    with pytest.raises(UserError, match="layout.tensor=3 does not divide num_attention_heads=4"):
        start(folder, tmp_path_factory, tensor=3)
