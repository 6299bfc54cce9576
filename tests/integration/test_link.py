"""The link of learner and engines over real gloo: what arrives, who may join when, and peers that die or hang.

tests/gpu/test_link.py runs all of it over NCCL, from one GPU to another.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest
import torch

from actors.linked_weights import Place, Receiver
from klong_rl import link
from klong_rl.link import LinkLost, buckets
from learners import link as learner_link
from learners.link import LinkedWeights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

DEADLINE_S = 60.0 if torch.cuda.is_available() else 20.0  # a process that uses NCCL imports vLLM first
AT_ONCE_S = 8.0  # a closed connection is seen long before the deadline
BIG = 1 << 23  # elements: more than a socket's buffers hold, so that a sender has to wait for who reads


def made_tensors(version: int, device="cpu") -> dict[str, torch.Tensor]:
    """Of several dtypes and odd sizes, and a view that is not contiguous."""
    torch.manual_seed(version)
    tensors = {
        "half": torch.randn(3, 5, 7).bfloat16(),
        "whole": torch.randn(11),
        "turned": torch.randn(4, 6).T,
        "bytes": torch.randint(0, 255, (13,), dtype=torch.uint8),
        "scalar": torch.randn(()),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@pytest.fixture
def devices():
    """Of the learner and of the engines."""
    return "cpu", "cpu"


@pytest.fixture
def publish(devices):
    return lambda weights, version: weights.publish(version, made_tensors(version, devices[0]).items())


@pytest.fixture
def small_buckets(monkeypatch):
    """Several buckets of a few tensors, on both sides."""
    monkeypatch.setattr(buckets, "__defaults__", (64,))


@pytest.fixture
def receivers(devices):
    made = []

    def make(rank=0, world=1, engine="e", deadline_s=DEADLINE_S):
        made.append(Receiver(Place(engine, rank, world), torch.device(devices[1]), deadline_s))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def fetch(receiver, published, version=None):
    plan = buckets(published["names"], published["dtype_names"], published["shapes"])
    version = published["version"] if version is None else version
    return {
        name: t.cpu().clone() for part in receiver.fetch(tuple(published["address"]), version, plan) for name, t in part
    }


def assert_version(got, version):
    wanted = made_tensors(version)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def test_what_arrives_is_what_was_published_and_the_last_two_versions_can_be_had(small_buckets, receivers, publish):
    weights, receiver, late = LinkedWeights(DEADLINE_S), receivers(), receivers(engine="late")
    first = publish(weights, 1)
    assert_version(fetch(receiver, first), 1)
    second = publish(weights, 2)
    assert_version(fetch(receiver, second), 2)
    assert_version(fetch(late, first), 1)
    publish(weights, 3)
    with pytest.raises(LinkLost, match="version 1 is not here any more"):
        fetch(receiver, first)
    assert_version(fetch(receiver, second), 2)


def test_all_processes_of_an_engine_get_all_of_it(receivers, publish):
    weights, got = LinkedWeights(DEADLINE_S), {}
    published = publish(weights, 1)
    ranks = [threading.Thread(target=lambda r=r: got.update({r: fetch(receivers(r, 2), published)})) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert_version(got[0], 1)
    assert_version(got[1], 1)


def test_one_who_stops_halfway_or_comes_again_under_its_name_is_linked_anew(small_buckets, receivers, publish):
    weights, receiver = LinkedWeights(DEADLINE_S), receivers()
    published = publish(weights, 1)
    plan = buckets(published["names"], published["dtype_names"], published["shapes"])
    halfway = receiver.fetch(tuple(published["address"]), 1, plan)
    next(halfway)
    halfway.close()
    assert_version(fetch(receiver, published), 1)
    assert_version(fetch(receivers(), published), 1)


def _learner(pipe, gate, device):
    """A learner's process that stops in the middle of sending once `gate` is set."""
    weights = LinkedWeights(DEADLINE_S)
    pack = learner_link._pack

    def slow(bucket, tensors):
        if gate.is_set():
            pipe.send("sending")
            time.sleep(600)
        return pack(bucket, tensors)

    learner_link._pack = slow
    pipe.send(weights.publish(1, made_tensors(1, device).items()))
    time.sleep(600)


@pytest.fixture
def learner(devices):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    gate = context.Event()
    process = context.Process(target=_learner, args=(theirs, gate, devices[0]), daemon=True)
    process.start()
    yield process, ours, gate
    process.kill()
    process.join()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_learner_that_is_gone_in_the_middle_ends_the_wait_with_a_typed_error(learner, receivers, publish, how):
    process, pipe, gate = learner
    published = pipe.recv()
    receiver = receivers()
    assert_version(fetch(receiver, published), 1)
    if how == signal.SIGSTOP:
        receiver._deadline_s = 2.0
    gate.set()

    def end():
        assert pipe.recv() == "sending"
        os.kill(process.pid, how)

    killer = threading.Thread(target=end)
    killer.start()
    began = time.monotonic()
    with pytest.raises(LinkLost):
        fetch(receiver, published)
    assert time.monotonic() - began < AT_ONCE_S
    killer.join()
    # Whoever takes its place is linked to as if there had been nobody.
    assert_version(fetch(receiver, publish(LinkedWeights(DEADLINE_S), 1)), 1)


def _engine(published, gate, device):
    receiver = Receiver(Place("killed", 0, 1), torch.device(device), DEADLINE_S)
    plan = buckets(published["names"], published["dtype_names"], published["shapes"], BIG)
    for _ in receiver.fetch(tuple(published["address"]), published["version"], plan):
        gate.set()
        time.sleep(600)


@pytest.mark.slow
def test_an_engine_that_is_killed_halfway_ends_its_thread_and_nothing_else(receivers, devices, monkeypatch, caplog):
    weights, other = LinkedWeights(DEADLINE_S), receivers(engine="other")
    monkeypatch.setattr(buckets, "__defaults__", (BIG,))  # one tensor each, in this process and in the one to be killed
    big = {f"w{i}": torch.full((BIG,), float(i), device=devices[0]) for i in range(4)}
    published = weights.publish(1, big.items())
    context = multiprocessing.get_context("spawn")
    gate = context.Event()
    killed = context.Process(target=_engine, args=(published, gate, devices[1]), daemon=True)
    killed.start()
    with caplog.at_level(logging.WARNING):
        assert gate.wait(60)
        killed.kill()
        killed.join()
        until = time.monotonic() + AT_ONCE_S
        while "the link to engine killed has ended" not in caplog.text:
            assert time.monotonic() < until, caplog.text
            time.sleep(0.05)
    assert torch.equal(fetch(other, published)["w3"], big["w3"].cpu())
    assert not any(staged.senders for staged in weights._server._staged)


def test_noise_at_the_port_is_refused_and_the_next_engine_is_served(receivers, publish, caplog):
    weights = LinkedWeights(DEADLINE_S)
    published = publish(weights, 1)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02{}"):
        with socket.create_connection(tuple(published["address"])) as connection:
            connection.sendall(noise)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    assert_version(fetch(receivers(), published), 1)


def test_an_engine_without_all_its_processes_is_not_served_and_says_so_in_time(receivers, publish):
    published = publish(LinkedWeights(DEADLINE_S), 1)
    with pytest.raises(LinkLost, match="did not answer in time"):
        fetch(receivers(rank=0, world=2, deadline_s=1.0), published)


def test_no_learner_at_the_address_is_told_at_once(receivers):
    free = socket.create_server(("127.0.0.1", 0))
    address = free.getsockname()
    free.close()
    with pytest.raises(LinkLost, match="no learner at 127.0.0.1"):
        next(receivers().fetch(address, 1, [link.Bucket((), 0)]))
