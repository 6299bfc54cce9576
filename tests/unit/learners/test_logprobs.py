"""Chunked log-probs against the plain formula on whole logits, values and gradients, alone and on two tensor ranks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learners.logprobs import label_logprobs

N, H, V = 13, 6, 24
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def case(dtype=torch.float64, n=N):
    """Hidden states, weight, labels, and the gradients of log-probs and entropies."""
    made = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, H, generator=made, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=made, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (n,), generator=made)
    grads = torch.randn(2, n, generator=made, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    return hidden, weight, labels, grads


def plain(hidden, weight, labels, temperature):
    log_p = torch.log_softmax((hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32)) / temperature, 1)
    return log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


def both(hidden, weight, labels, grads, temperature, chunk, entropy_in_loss):
    """(log-probs, entropies, gradient of hidden, of weight), by the chunked function and by the plain one."""
    answers = []
    for logprobs, entropies in (
        label_logprobs(hidden, weight, labels, temperature, chunk=chunk, with_entropy=True),
        plain(hidden, weight, labels, temperature),
    ):
        loss = (logprobs * grads[0]).sum() + ((entropies * grads[1]).sum() if entropy_in_loss else 0)
        answers.append((logprobs, entropies, *torch.autograd.grad(loss, (hidden, weight))))
    return answers


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 5, N, 100])
@pytest.mark.parametrize("entropy_in_loss", [False, True])
def test_they_are_those_of_the_whole_logits(dtype, temperature, chunk, entropy_in_loss):
    ours, theirs = both(*case(dtype), temperature, chunk, entropy_in_loss)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_entropies_are_left_out_unless_wanted():
    hidden, weight, labels, _ = case()
    logprobs, entropies = label_logprobs(hidden, weight, labels, 1.0, chunk=4)
    assert entropies is None
    torch.testing.assert_close(logprobs, plain(hidden, weight, labels, 1.0)[0])


def test_entropies_alone_may_be_what_is_differentiated():
    hidden, weight, labels, grads = case()
    gradients = []
    for _, entropies in (
        label_logprobs(hidden, weight, labels, 0.7, chunk=4, with_entropy=True),
        plain(hidden, weight, labels, 0.7),
    ):
        gradients.append(torch.autograd.grad((entropies * grads[1]).sum(), (hidden, weight)))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)


def test_half_precision_weights_give_float32_log_probs_and_gradients_of_their_own_dtype():
    ours, theirs = both(*case(torch.bfloat16), 1.0, 5, True)
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 2 + [torch.bfloat16] * 2
    for got, wanted in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(ours[2:], theirs[2:], strict=True):
        torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)


def test_large_logits_neither_overflow_nor_underflow():
    hidden, weight = torch.tensor([[1e4], [-1e4]], requires_grad=True), torch.tensor([[1.0], [0.0]], requires_grad=True)
    logprobs, entropies = label_logprobs(hidden, weight, torch.tensor([0, 0]), 1.0, chunk=2, with_entropy=True)
    (logprobs.sum() + entropies.sum()).backward()
    assert logprobs.tolist() == [0.0, -1e4]
    assert entropies.tolist() == [0.0, 0.0]
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


def test_no_tokens_give_zero_gradients():
    hidden, weight, labels, _ = case(n=0)
    logprobs, entropies = label_logprobs(hidden, weight, labels, 1.0, chunk=4, with_entropy=True)
    (logprobs.sum() + entropies.sum()).backward()
    assert (logprobs.shape, hidden.grad.shape) == ((0,), (0, H))
    assert (weight.grad == 0).all()


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, torch.Tensor):
            self.elements = max(self.elements, answer.numel())
        return answer


def test_no_more_logits_are_held_than_those_of_a_chunk():
    hidden, weight, labels, grads = case(n=2000)
    chunk = 50
    with LargestTensor() as largest:
        logprobs, entropies = label_logprobs(hidden, weight, labels, 1.0, chunk=chunk, with_entropy=True)
        (logprobs * grads[0] + entropies * grads[1]).sum().backward()
    assert largest.elements == max(chunk * V, 2000 * H)


@pytest.mark.parametrize(("temperature", "chunk", "message"), [(0.0, 4, "temperature=0.0"), (1.0, 0, "chunk=0")])
def test_what_has_no_answer_is_refused(temperature, chunk, message):
    hidden, weight, labels, _ = case()
    with pytest.raises(ValueError, match=message):
        label_logprobs(hidden, weight, labels, temperature, chunk=chunk)


def on_tensor_rank(rank, ranks, rendezvous, folder):
    """What one rank of two gets, left in a file."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    hidden, weight, labels, grads = case()
    part = weight.detach().chunk(ranks)[rank].clone().requires_grad_()
    logprobs, entropies = label_logprobs(
        hidden, part, labels, 0.7, chunk=5, group=torch.distributed.group.WORLD, with_entropy=True
    )
    loss = (logprobs * grads[0] + entropies * grads[1]).sum()
    torch.save((logprobs.detach(), entropies.detach(), *torch.autograd.grad(loss, (hidden, part))), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_tensor_ranks_give_what_one_gives(tmp_path):
    ranks = 2
    torch.multiprocessing.spawn(on_tensor_rank, (ranks, tmp_path / "rendezvous", tmp_path), ranks)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(ranks))
    _, (logprobs, entropies, grad_hidden, grad_weight) = both(*case(), 0.7, 5, True)
    for answer in (first, second):
        for got, wanted in zip(answer[:3], (logprobs, entropies, grad_hidden), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.cat([first[3], second[3]]), grad_weight, atol=1e-10, rtol=1e-10)
