"""The GPU's softmax kernels against the plain ones, on logits that no block divides."""

import pytest
import torch

from learners import softmax
from learners.softmax import Pull

ROWS, VOCAB = 37, 9001


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_statistics_and_gradients_are_those_of_plain_torch(dtype, tolerance, temperature):
    from learners import softmax_gpu

    made = torch.Generator("cuda").manual_seed(0)
    logits_CV = (3 * torch.randn(ROWS, VOCAB, generator=made, device="cuda")).to(dtype)
    columns_C = torch.randint(0, VOCAB, (ROWS,), generator=made, device="cuda")
    columns_C[2] = -1  # another rank's
    wanted = softmax.statistics(logits_CV, columns_C, temperature, True)
    for ours, theirs in zip(softmax_gpu.statistics(logits_CV, columns_C, temperature, True), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    logsumexp_C = wanted.max_C + wanted.sum_C.log()
    grads_2C = torch.randn(2, ROWS, generator=made, device="cuda")
    for pull in (
        Pull(logsumexp_C, grads_2C[0]),
        Pull(logsumexp_C, grads_2C[0], logsumexp_C - wanted.dot_C / wanted.sum_C, grads_2C[1]),
    ):
        theirs = softmax.gradient(logits_CV.clone(), columns_C, temperature, pull)
        ours = softmax_gpu.gradient(logits_CV.clone(), columns_C, temperature, pull)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=tolerance)
