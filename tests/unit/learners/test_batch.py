"""Planning and collating: every target once, within the budget, equally many micro-batches on each rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.buffer import WindowRef
from klong_rl.types import Window
from learners.batch import collate, padded, plan


def window(name, targets, versions=None, advantage=1.0, first_token=10):
    """Tokens first_token, first_token + 1, ...; the log-prob of a target is -token / 100."""
    targets_T = np.array(targets, np.uint8)
    tokens_T = np.arange(first_token, first_token + len(targets), dtype=np.int32)
    return Window(
        id=name,
        episode="e",
        group="g",
        stage=1,
        tokens_T=tokens_T,
        targets_T=targets_T,
        logprobs_T=(-tokens_T / 100 * targets_T).astype(np.float32),
        versions=versions if versions is not None else ((0, int(targets_T.sum())),),
        advantage=advantage,
    )


def ref(name, n_tokens):
    return WindowRef(name, n_tokens, 1, 0, 1, "g")


@st.composite
def windows(draw):
    """Windows of 2 to 40 tokens whose first token is context, each token unique over all windows."""
    made, token = [], 1
    for i in range(draw(st.integers(1, 30))):
        targets = [0, *draw(st.lists(st.integers(0, 1), min_size=1, max_size=39))]
        made.append(window(f"w{i}", targets, first_token=token))
        token += len(targets)
    return made


@given(windows(), st.integers(1, 4), st.integers(40, 200), st.sampled_from([(1, 1), (8, 1), (8, 4)]))
def test_every_target_is_trained_exactly_once_within_the_budget(made, ranks, budget, pads):
    pad_to, window_pad = pads
    by_id = {w.id: w for w in made}
    refs = [WindowRef(w.id, len(w.tokens_T), 1, 0, 1, "g") for w in made]
    shares = plan(refs, ranks, budget, pad_to, window_pad)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1, "ranks differ in their number of micro-batches"
    trained = []
    for share in shares:
        for ids in share:
            batch = collate([by_id[i] for i in ids], pad_to, window_pad)
            assert len(batch.tokens_R) <= budget and len(batch.tokens_R) % pad_to == 0
            assert not (np.diff(batch.starts_W1) % window_pad).any()
            trained += batch.labels_N.tolist()
    wanted = [token for w in made for token in w.tokens_T[w.targets_T == 1].tolist()]
    assert sorted(trained) == sorted(wanted)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 4), st.randoms())
def test_the_plan_depends_on_the_windows_and_not_on_their_order(lengths, ranks, random):
    refs = [ref(f"w{i}", n) for i, n in enumerate(lengths)]
    shuffled = random.sample(refs, len(refs))
    assert plan(refs, ranks, 128, 8) == plan(shuffled, ranks, 128, 8)


@given(windows(), st.sampled_from([1, 8]))
def test_a_row_is_its_windows_one_after_the_other(made, pad_to):
    batch = collate(made, pad_to)
    pieces = np.split(batch.tokens_R, batch.starts_W1[1:-1])
    assert [piece.tolist() for piece in pieces[: len(made)]] == [w.tokens_T.tolist() for w in made]
    assert all(not piece.any() for piece in pieces[len(made) :]), "the rest is padding"
    assert batch.starts_W1[-1] == len(batch.tokens_R)
    for piece in np.split(batch.positions_R, batch.starts_W1[1:-1]):
        assert piece.tolist() == list(range(len(piece)))


@given(windows())
def test_each_target_has_its_own_numbers_and_is_predicted_one_place_before_it(made):
    batch = collate(made, 8)
    assert batch.tokens_R[batch.places_N + 1].tolist() == batch.labels_N.tolist()
    np.testing.assert_allclose(batch.sampler_logprobs_N, -batch.labels_N / 100, rtol=1e-6)
    starts_K = batch.starts_W1[batch.window_N]
    assert (batch.places_N >= starts_K).all() and (batch.places_N + 1 < batch.starts_W1[batch.window_N + 1]).all()
    assert np.bincount(batch.window_N, minlength=len(made)).tolist() == [w.n_targets() for w in made]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(2, 4))
def test_ranks_get_about_the_same_tokens(lengths, ranks):
    refs = [ref(f"w{i}", n) for i, n in enumerate(lengths)]
    n_tokens = {r.id: r.n_tokens for r in refs}
    load = [sum(n_tokens[i] for ids in share for i in ids) for share in plan(refs, ranks, 128, 1)]
    assert max(load) - min(load) <= 128


def test_two_ranks_share_what_one_row_would_hold():
    refs = [ref(f"w{i}", 10) for i in range(8)]
    assert [[len(ids) for ids in share] for share in plan(refs, 2, 128, 1)] == [[4], [4]]


@pytest.mark.parametrize("seed", range(5))
def test_heavy_tailed_windows_fill_their_rows(seed):
    lengths = np.minimum(200 + np.random.default_rng(seed).pareto(1.1, 1000) * 500, 8192).astype(int)
    rows = plan([ref(f"w{i}", int(n)) for i, n in enumerate(lengths)], ranks=1, token_budget=8192, pad_to=16)[0]
    assert lengths.sum() / (len(rows) * 8192) >= 0.95


def test_a_rank_short_of_windows_gets_empty_micro_batches():
    shares = plan([ref("a", 10), ref("b", 10), ref("c", 10)], ranks=2, token_budget=16, pad_to=16)
    assert sorted(len(ids) for ids in shares[0] + shares[1]) == [0, 1, 1, 1]


def test_an_empty_micro_batch_has_a_row_and_no_target():
    batch = collate([], pad_to=8)
    assert (len(batch.tokens_R), batch.starts_W1.tolist()) == (8, [0, 8])
    assert [len(array) for array in (batch.labels_N, batch.versions_N, batch.window_N, batch.advantages_W)] == [0] * 4


def test_a_window_over_the_budget_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match=r"w0 takes 112 tokens padded to 16, more than token_budget=100"):
        plan([ref("w0", 100)], ranks=1, token_budget=100, pad_to=16)


def test_an_id_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="twice.*w0"):
        plan([ref("w0", 4), ref("w0", 4)], ranks=1, token_budget=100, pad_to=16)


def test_a_window_in_numbers():
    first = window("v", [0, 1], versions=((5, 1),), advantage=0.5, first_token=30)
    batch = collate([first, window("w", [0, 0, 1, 1, 0, 1], versions=((3, 2), (4, 1)), advantage=-2.0)], pad_to=10)
    assert batch.tokens_R.tolist() == [30, 31, 10, 11, 12, 13, 14, 15, 0, 0]
    assert batch.positions_R.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 0, 1]
    assert (batch.starts_W1.tolist(), batch.starts_W1.dtype) == ([0, 2, 8, 10], np.int32)
    assert batch.places_N.tolist() == [0, 3, 4, 6]
    assert batch.labels_N.tolist() == [31, 12, 13, 15]
    assert batch.versions_N.tolist() == [5, 3, 3, 4]
    assert batch.window_N.tolist() == [0, 1, 1, 1]
    assert batch.advantages_W.tolist() == [0.5, -2.0]


def test_a_first_token_as_target_is_refused():
    with pytest.raises(ValueError, match="first token"):
        collate([window("w", [1, 0])], pad_to=8)


def test_versions_that_do_not_count_the_targets_are_refused():
    with pytest.raises(ValueError, match="has 1 targets, its version runs count 2"):
        collate([window("w", [0, 1], versions=((0, 2),))], pad_to=8)


@given(st.integers(1, 500), st.integers(1, 64))
def test_padded_is_the_next_multiple(n_tokens, pad_to):
    row = padded(n_tokens, pad_to)
    assert row % pad_to == 0 and row - pad_to < n_tokens <= row
