"""Megatron's learner on a GPU, with Transformer Engine layers, against transformers in float32 on the same GPU."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from klong_rl.buffer import WindowRef
from learners.batch import plan

BF16_MEAN, BF16_MAX = 0.05, 0.5  # nats: what bfloat16 costs a log-prob of this model
STEPS = 4


def share(rank, windows, token_budget=8192):
    return plan([WindowRef.of(window) for window in windows], 1, token_budget, rank._job.pad_to)[0]


def logprobs(rank, windows, together=True):
    """Of each window's targets; `together` in few micro-batches, or each window in one of its own."""
    ids = share(rank, windows) if together else [[window.id] for window in windows]
    answer = rank.logprobs(1.0, ids, {window.id: window for window in windows})
    return {window.id: answer[window.id][window.targets_T > 0] for window in windows}


def label_logprobs(model, window):
    tokens = torch.from_numpy(window.tokens_T.astype(np.int64))[None].cuda()
    logprobs = model(tokens).logits[0, :-1].float().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return logprobs[torch.from_numpy(window.targets_T[1:]).cuda() > 0]


def differences(ours, theirs):
    return np.concatenate([np.abs(ours[name] - theirs[name]) for name in theirs])


@pytest.fixture(scope="module")
def expected(folder, windows):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda()
    with torch.no_grad():
        return {window.id: label_logprobs(model, window).cpu().numpy() for window in windows}


@pytest.fixture(scope="module")
def rank(make_rank):
    return make_rank("bfloat16")


def test_log_probs_are_those_of_float32_to_bfloat16_s_rounding(rank, windows, expected):
    gap = differences(logprobs(rank, windows), expected)
    print(f"\nlearner bf16 against float32: mean {gap.mean():.5f}, max {gap.max():.4f} over {len(gap)} tokens")
    assert gap.mean() < BF16_MEAN and gap.max() < BF16_MAX


def test_windows_trained_together_are_each_alone(rank, windows):
    gap = differences(logprobs(rank, windows), logprobs(rank, windows, together=False))
    print(f"\ntogether against alone: max {gap.max():.2e}")
    assert gap.max() < 1e-3


def test_what_is_published_is_the_model_in_bfloat16(rank, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tensors = rank.export()
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name].cpu(), tensor), name


def test_a_checkpoint_goes_on_where_it_was(rank, windows, tmp_path):
    given = {window.id: window for window in windows}
    rank.sft_step(share(rank, windows), given)
    rank.begin_save(tmp_path)
    first = rank.sft_step(share(rank, windows), given)["sums"]["loss_sum"]
    weights = {name: tensor.clone() for name, tensor in rank.export().items()}
    assert rank.finish_save(wait=True)
    rank.load(tmp_path / "megatron")
    again = rank.sft_step(share(rank, windows), given)["sums"]["loss_sum"]
    assert again == pytest.approx(first, rel=1e-5)
    off = max(float((tensor - weights[name]).abs().max()) for name, tensor in rank.export().items())
    print(f"\nafter load: loss {again} against {first}, weights off by {off:.1e}")
    assert off < 1e-3


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 2e-3)])
def test_a_few_steps_are_those_of_plain_torch(make_rank, folder, windows, dtype, tolerance):
    """AdamW and clipping on float32 master weights, seen by the forward pass in `dtype`: losses a token."""
    rank, half = make_rank(dtype), getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda()
    masters = [parameter.detach().to(half).float() for parameter in model.parameters()]
    settings = rank._job.learner.optimizer
    adamw = torch.optim.AdamW(masters, settings.lr, (settings.beta1, settings.beta2), settings.eps, weight_decay=0.0)
    given = {window.id: window for window in windows}
    total = sum(window.n_targets() for window in windows)
    for _ in range(STEPS):
        sums = rank.sft_step(share(rank, windows), given)
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master.to(half))
        model.zero_grad()
        theirs = 0.0
        for window in windows:
            loss = -label_logprobs(model, window).sum() / total
            loss.backward()
            theirs += loss.item()
        for parameter, master in zip(model.parameters(), masters, strict=True):
            master.grad = parameter.grad
        norm = torch.nn.utils.clip_grad_norm_(masters, settings.clip_grad)
        adamw.step()
        ours, grad_norm = sums["sums"]["loss_sum"] / sums["sums"]["weight"], sums["maxima"]["grad_norm"]
        print(f"\n{dtype}: loss {ours:.6f} against {theirs:.6f}, norm {grad_norm:.5f} against {norm:.5f}")
        assert ours == pytest.approx(theirs, rel=tolerance)


def test_float32_log_probs_are_transformers(make_rank, windows, expected):
    gap = differences(logprobs(make_rank("float32"), windows), expected)
    print(f"\nlearner float32 against float32: mean {gap.mean():.2e}, max {gap.max():.2e}")
    assert gap.max() < 1e-4
