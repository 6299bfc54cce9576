"""The link of learner and engines over NCCL, from GPU 0 to GPU 1: the tests of tests/integration/test_link.py."""

import pytest
import torch

from tests.integration.test_link import (  # noqa: F401
    learner,
    publish,
    receivers,
    small_buckets,
    test_a_learner_that_is_gone_in_the_middle_ends_the_wait_with_a_typed_error,
    test_an_engine_that_is_killed_halfway_ends_its_thread_and_nothing_else,
    test_one_who_stops_halfway_or_comes_again_under_its_name_is_linked_anew,
    test_what_arrives_is_what_was_published_and_the_last_two_versions_can_be_had,
)

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture
def devices():
    return "cuda:0", "cuda:1"
