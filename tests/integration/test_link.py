"""The link of learner and engines over real gloo: what arrives, who may join when, and peers that die or hang."""

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

DEADLINE_S = 20.0
AT_ONCE_S = 5.0  # a closed connection is seen long before the deadline
CPU = torch.device("cpu")


def made_tensors(version: int) -> dict[str, torch.Tensor]:
    """Of several dtypes and odd sizes, and a view that is not contiguous."""
    torch.manual_seed(version)
    return {
        "half": torch.randn(3, 5, 7).bfloat16(),
        "whole": torch.randn(11),
        "turned": torch.randn(4, 6).T,
        "bytes": torch.randint(0, 255, (13,), dtype=torch.uint8),
        "scalar": torch.randn(()),
    }


@pytest.fixture
def small_buckets(monkeypatch):
    """Several buckets of a few tensors, on both sides."""
    monkeypatch.setattr(buckets, "__defaults__", (64,))


@pytest.fixture
def receivers():
    made = []

    def make(rank=0, world=1, engine="e", deadline_s=DEADLINE_S):
        made.append(Receiver(Place(engine, rank, world), CPU, deadline_s))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def fetch(receiver, published, version=None):
    plan = buckets(published["names"], published["dtype_names"], published["shapes"])
    version = published["version"] if version is None else version
    return {name: t.clone() for part in receiver.fetch(tuple(published["address"]), version, plan) for name, t in part}


def assert_version(got, version):
    wanted = made_tensors(version)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def test_what_arrives_is_what_was_published_and_the_last_two_versions_can_be_had(small_buckets, receivers):
    weights, receiver, late = LinkedWeights(DEADLINE_S), receivers(), receivers(engine="late")
    first = weights.publish(1, made_tensors(1).items())
    assert_version(fetch(receiver, first), 1)
    second = weights.publish(2, made_tensors(2).items())
    assert_version(fetch(receiver, second), 2)
    assert_version(fetch(late, first), 1)
    weights.publish(3, made_tensors(3).items())
    with pytest.raises(LinkLost, match="version 1 is not here any more"):
        fetch(receiver, first)
    assert_version(fetch(receiver, second), 2)


def test_all_processes_of_an_engine_get_all_of_it(receivers):
    weights, got = LinkedWeights(DEADLINE_S), {}
    published = weights.publish(1, made_tensors(1).items())
    ranks = [threading.Thread(target=lambda r=r: got.update({r: fetch(receivers(r, 2), published)})) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert_version(got[0], 1)
    assert_version(got[1], 1)


def test_one_who_stops_halfway_or_comes_again_under_its_name_is_linked_anew(small_buckets, receivers):
    weights, receiver = LinkedWeights(DEADLINE_S), receivers()
    published = weights.publish(1, made_tensors(1).items())
    plan = buckets(published["names"], published["dtype_names"], published["shapes"])
    halfway = receiver.fetch(tuple(published["address"]), 1, plan)
    next(halfway)
    halfway.close()
    assert_version(fetch(receiver, published), 1)
    assert_version(fetch(receivers(), published), 1)


def _learner(pipe, gate):
    """A learner's process that stops in the middle of sending once `gate` is set."""
    weights = LinkedWeights(DEADLINE_S)
    pack = learner_link._pack

    def slow(bucket, tensors):
        if gate.is_set():
            pipe.send("sending")
            time.sleep(600)
        return pack(bucket, tensors)

    learner_link._pack = slow
    pipe.send(weights.publish(1, made_tensors(1).items()))
    time.sleep(600)


@pytest.fixture
def learner():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    gate = context.Event()
    process = context.Process(target=_learner, args=(theirs, gate), daemon=True)
    process.start()
    yield process, ours, gate
    process.kill()
    process.join()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_learner_that_is_gone_in_the_middle_ends_the_wait_with_a_typed_error(learner, receivers, how):
    process, pipe, gate = learner
    published = pipe.recv()
    receiver = receivers(deadline_s=DEADLINE_S if how == signal.SIGKILL else 2.0)
    assert_version(fetch(receiver, published), 1)
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
    assert_version(fetch(receiver, LinkedWeights(DEADLINE_S).publish(1, made_tensors(1).items())), 1)


def _engine(published, gate):
    receiver = Receiver(Place("killed", 0, 1), CPU, DEADLINE_S)
    plan = buckets(published["names"], published["dtype_names"], published["shapes"])
    for _ in receiver.fetch(tuple(published["address"]), published["version"], plan):
        gate.set()
        time.sleep(600)


@pytest.mark.slow
def test_an_engine_that_is_killed_halfway_ends_its_thread_and_nothing_else(receivers, monkeypatch, caplog):
    weights, other = LinkedWeights(DEADLINE_S), receivers(engine="other")
    # Larger than a socket's buffers: the sender has to wait for a reader.
    big = {f"w{i}": torch.full((1 << 23,), float(i)) for i in range(4)}
    published = weights.publish(1, big.items())
    context = multiprocessing.get_context("spawn")
    gate = context.Event()
    killed = context.Process(target=_engine, args=(published, gate), daemon=True)
    killed.start()
    with caplog.at_level(logging.WARNING):
        assert gate.wait(60)
        killed.kill()
        killed.join()
        until = time.monotonic() + AT_ONCE_S
        while "the link to engine killed has ended" not in caplog.text:
            assert time.monotonic() < until, caplog.text
            time.sleep(0.05)
    assert torch.equal(fetch(other, published)["w3"], big["w3"])
    assert not any(staged.senders for staged in weights._server._staged)


def test_noise_at_the_port_is_refused_and_the_next_engine_is_served(receivers, caplog):
    weights = LinkedWeights(DEADLINE_S)
    published = weights.publish(1, made_tensors(1).items())
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02{}"):
        with socket.create_connection(tuple(published["address"])) as connection:
            connection.sendall(noise)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    assert_version(fetch(receivers(), published), 1)


def test_an_engine_without_all_its_processes_is_not_served_and_says_so_in_time(receivers):
    published = LinkedWeights(DEADLINE_S).publish(1, made_tensors(1).items())
    with pytest.raises(LinkLost, match="did not answer in time"):
        fetch(receivers(rank=0, world=2, deadline_s=1.0), published)


def test_no_learner_at_the_address_is_told_at_once(receivers):
    free = socket.create_server(("127.0.0.1", 0))
    address = free.getsockname()
    free.close()
    with pytest.raises(LinkLost, match="no learner at 127.0.0.1"):
        next(receivers().fetch(address, 1, [link.Bucket((), 0)]))
