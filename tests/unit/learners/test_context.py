"""What context ranks hold of a row: every token once, pieces of equal cost, in the order of Transformer Engine."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learners.context import pieces, places


def test_the_example_of_transformer_engine_s_documentation():
    starts_W1 = np.array([0, 8, 12])
    assert places(starts_W1, 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert places(starts_W1, 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_every_token_is_held_once_and_all_ranks_have_as_much_to_attend_to(sizes, ranks):
    starts_W1 = np.cumsum([0, *(2 * ranks * size for size in sizes)])
    held = [places(starts_W1, ranks, rank) for rank in range(ranks)]
    assert sorted(np.concatenate(held)) == list(range(starts_W1[-1]))
    # Of each token those before it in its window, and itself: equal to the pairs within pieces.
    costs = [
        sum(sum(range(first + 1, last + 1)) for _, first, last in pieces(starts_W1, ranks, rank))
        for rank in range(ranks)
    ]
    assert len(set(costs)) == 1
