"""Buckets: every tensor once, in order, aligned, none over the bound but one that is larger by itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.link.buckets import ALIGNED, ITEM_BYTES, buckets

TENSORS = st.lists(st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 9), max_size=3)), max_size=30)


@given(TENSORS, st.integers(1, 500))
def test_every_tensor_is_in_one_bucket_in_order_and_aligned(tensors, most):
    names = [f"t{i}" for i in range(len(tensors))]
    made = buckets(names, [dtype for dtype, _ in tensors], [shape for _, shape in tensors], most)
    entries = [entry for bucket in made for entry in bucket.entries]
    assert [entry.name for entry in entries] == names
    for entry, (dtype, shape) in zip(entries, tensors, strict=True):
        assert (entry.dtype, list(entry.shape)) == (dtype, shape)
        assert entry.size == ITEM_BYTES[dtype] * math.prod(shape) and entry.start % ALIGNED == 0
    for bucket in made:
        ends = [entry.start + entry.size for entry in bucket.entries]
        starts = [entry.start for entry in bucket.entries]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False)) and ends[-1] <= bucket.size
        assert len(bucket.entries) == 1 or ends[-1] <= most


def test_a_dtype_that_can_not_travel_is_named():
    with pytest.raises(ValueError, match="w is of dtype complex64"):
        buckets(["w"], ["complex64"], [[2]])
