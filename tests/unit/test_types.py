"""The records: what they say of themselves."""

import numpy as np

from klong_rl.types import Window


def test_the_oldest_version_of_a_window_is_over_its_targets():
    window = Window(
        id="w",
        episode="e",
        group="g",
        stage=1,
        tokens_T=np.arange(6, dtype=np.int32),
        targets_T=np.array([0, 1, 1, 0, 1, 1], np.uint8),
        logprobs_T=np.zeros(6, np.float32),
        versions=((7, 2), (5, 2)),
    )
    assert (window.oldest_version(), window.n_targets()) == (5, 4)
