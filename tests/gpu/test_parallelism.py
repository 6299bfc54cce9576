"""On two GPUs, each way of using both against one GPU on the same batch, in bfloat16: log-probs, losses, gradients."""

import dataclasses
import time
import traceback

import numpy as np
import pytest
import torch

from klong_rl.config import LearnerConfig
from klong_rl.learner_config import LayoutConfig, OptimizerConfig
from learners.job import LearnerJob
from tests.learner_ranks import made_windows, run_ranks, share_of

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

STEPS = 3
BUDGET = 4096
WINDOWS = made_windows(12, longest=1500)
LAYOUTS = {
    "tensor": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2},
    "data": {"data": 2},
    "expert": {"data": 2, "expert": 2},
}
CASES = [("llama", name) for name in LAYOUTS if name != "expert"] + [("glm4_moe", name) for name in LAYOUTS]
# nats, of a token's log-prob; relative, of a loss and of a gradient's norm. Experts are chosen by rounding at times.
MEAN = {"llama": 0.02, "glm4_moe": 0.06}
LOSS, NORM = 2e-2, 5e-2


def gpu_job(folder="", **layout) -> LearnerJob:
    learner = LearnerConfig(
        layout=LayoutConfig(**{"data": 1, **layout}),
        optimizer=OptimizerConfig(lr=1e-4, eps=1e-5),
        device="cuda",
        dtype="bfloat16",
        gpu_memory=0.3,
        token_budget=BUDGET,
    )
    return LearnerJob(str(folder), learner, collective_timeout_s=90.0)


def build_glm(folder) -> None:
    """In the shape of GLM-4.5-Air: a dense layer, then experts with a shared one, and routing by score and bias."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    config = Glm4MoeConfig(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1024,
        moe_intermediate_size=256,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.5,
        use_qk_norm=True,
        attention_bias=True,
        vocab_size=512,
        initializer_range=0.05,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )
    torch.manual_seed(0)
    model = Glm4MoeForCausalLM(config)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.add_(0.1 * torch.randn_like(buffer))
    model.save_pretrained(folder)


def train(job, rank, device, cases):
    """By case (model folder, layout): log-probs of WINDOWS, then the metrics of STEPS steps; or what went wrong."""
    from megatron.core import parallel_state

    from learners import process

    answers = {}
    for case, (folder, layout) in cases.items():
        laid = dataclasses.replace(job, model=str(folder))
        laid = dataclasses.replace(laid, learner=dataclasses.replace(job.learner, layout=LayoutConfig(**layout)))
        began = time.monotonic()
        parallel_state.destroy_model_parallel()
        process.lay_out(laid)
        try:
            answers[case] = _train(laid, device)
        except Exception:
            answers[case] = traceback.format_exc()
        print(f"{case} rank {rank}: {time.monotonic() - began:.1f} s", flush=True)
    return answers


def _train(job, device):
    from klong_rl.objectives import build_objective
    from learners import model, step
    from learners.forward import Batch, window_logprobs

    one, by_id = model.build(job), {window.id: window for window in WINDOWS}
    shares = share_of(job, WINDOWS)

    def batches():
        return [Batch([by_id[i] for i in ids], job.pad_to, device, job.window_pad) for ids in shares]

    found = {}
    rows = batches()
    for row, logprobs_N in zip(rows, step.logprobs(one, rows, 1.0), strict=False):
        found |= window_logprobs(row, logprobs_N)
    parts = [step.train_step(one, batches(), build_objective("klong"), 1.0, version=1) for _ in range(STEPS)]
    return found, parts


@pytest.fixture(scope="module")
def folders(folder, tmp_path_factory):
    glm = tmp_path_factory.mktemp("glm")
    build_glm(glm)
    return {"llama": folder, "glm4_moe": glm}


@pytest.fixture(scope="module")
def alone(folders):
    return run_ranks(gpu_job(), train, {model: (path, {"data": 1}) for model, path in folders.items()})[0]


@pytest.fixture(scope="module")
def together(folders):
    cases = {(model, name): (folders[model], {"data": 1, **LAYOUTS[name]}) for model, name in CASES}
    return run_ranks(gpu_job(data=2), train, cases)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_two_gpus_do_what_one_does(alone, together, model, layout):
    from learners.step import merge

    answers = [answer[model, layout] for answer in together]
    for answer in (alone[model], *answers):
        assert not isinstance(answer, str), answer
    wanted, steps = alone[model][0], [merge([part]) for part in alone[model][1]]
    logprobs = {window: found for answer in answers for window, found in answer[0].items()}
    ours = [merge(parts) for parts in zip(*(answer[1] for answer in answers), strict=True)]
    gap = np.concatenate([np.abs(logprobs[w.id] - wanted[w.id])[w.targets_T == 1] for w in WINDOWS])
    both = zip(ours, steps, strict=True)
    pairs = [(mine["loss"], one["loss"], mine["grad_norm"], one["grad_norm"]) for mine, one in both]
    print(f"\n{model} {layout}: log-probs mean {gap.mean():.4f}, max {gap.max():.3f}; losses and norms", pairs)
    assert gap.mean() < MEAN[model]
    for loss, wanted_loss, norm, wanted_norm in pairs:
        assert loss == pytest.approx(wanted_loss, rel=LOSS, abs=2e-3)
        assert norm == pytest.approx(wanted_norm, rel=NORM)
    assert [step["action_tokens"] for step in ours] == [step["action_tokens"] for step in steps]


def test_context_ranks_hold_what_transformer_engine_says():
    """Its own index of a packed row, beside ours."""
    import transformer_engine  # noqa: F401  (loads the extension's libraries)
    import transformer_engine_torch as tex

    from learners import context

    starts_W1 = np.cumsum([0, 8, 24, 16, 64]).astype(np.int32)
    for ranks in (2, 4):
        for rank in range(ranks):
            starts, total = torch.from_numpy(starts_W1).cuda(), int(starts_W1[-1])
            theirs = tex.thd_get_partitioned_indices(starts, total, ranks, rank)
            assert theirs.cpu().tolist() == context.places(starts_W1, ranks, rank).tolist()
