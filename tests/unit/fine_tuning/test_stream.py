"""The stream of batches: each window once an epoch, an order that a seed fixes, taken up again at any batch."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klong_rl.config import AgentConfig
from klong_rl.errors import UserError
from klong_rl.fine_tuning.files import DataSet, open_files
from klong_rl.fine_tuning.rows import Encoder
from klong_rl.fine_tuning.stream import Position, WindowSource, WindowStream, held_out_windows, is_held_out
from klong_rl.windows import ContextRule

RULE = ContextRule(max_tokens=40, overlap_tokens=8, action_tokens=4)


def source(folder: Path, n_rows: int, seed: int = 0, wanted=lambda row: True, form: str = "jsonl") -> WindowSource:
    """Trajectories of 1 to 40 turns, each token of the data set another one."""
    (folder / "config.json").write_text(json.dumps({"vocab_size": 2**31 - 1}))
    rng, token, rows = np.random.default_rng(0), 0, []
    for number in range(n_rows):
        runs = rng.integers(1, 6, 1 + 2 * int(rng.integers(1, 40)))
        agent = np.repeat(np.arange(len(runs)) % 2, runs)
        rows.append({"id": f"t{number}", "tokens": list(range(token, token + len(agent))), "agent": agent.tolist()})
        token += len(agent)
    path = folder / f"data.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    data = DataSet(open_files(str(path), "data"), None)
    return WindowSource(data, Encoder(folder, AgentConfig()), RULE, seed, wanted)


BEGINNING = Position()


def stream(made: WindowSource, position: Position = BEGINNING, epochs: int = 2, block: int = 7) -> WindowStream:
    return WindowStream(made, position, epochs=epochs, shuffle_windows=block, tokens_per_step=100)


def tokens(batches) -> list:
    return [[(w.id, w.tokens_T.tolist(), w.targets_T.tolist()) for w in batch.windows] for batch in batches]


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def whole(request, tmp_path_factory):
    made = source(tmp_path_factory.mktemp("data"), 12, form=request.param)
    return made, list(stream(made))


def test_each_action_token_is_trained_once_an_epoch(whole):
    made, batches = whole
    rows = [row.content for unit in range(len(made.data)) for _, row in made.data.rows(unit)]
    wanted = sorted(token for row in rows for token in row.tokens_T[row.agent_T == 1].tolist())
    windows = [window for batch in batches for window in batch.windows]
    for epoch in "01":
        of_epoch = [window for window in windows if window.id.startswith(f"{epoch}.")]
        trained = sorted(t for window in of_epoch for t in window.tokens_T[window.targets_T == 1].tolist())
        assert trained == wanted
    assert len({window.id for window in windows}) == len(windows), "an id names one window"


def test_a_batch_takes_what_fits(whole):
    _, batches = whole
    sizes = [[len(window.tokens_T) for window in batch.windows] for batch in batches]
    assert max(map(sum, sizes)) <= 100
    assert all(sum(this) + following[0] > 100 for this, following in itertools.pairwise(sizes))


@settings(max_examples=40)
@given(st.data())
def test_from_the_position_after_any_batch_the_same_batches_come(whole, data):
    made, batches = whole
    number = data.draw(st.integers(0, len(batches) - 1))
    rest = stream(made, batches[number].after)
    assert tokens(rest) == tokens(batches[number + 1 :])
    assert [batch.after for batch in rest] == [batch.after for batch in batches[number + 1 :]]
    assert rest.is_exhausted() == (number == len(batches) - 1)


def test_order_is_drawn_from_the_seed_and_anew_each_epoch(tmp_path):
    made = source(tmp_path, 12)
    batches = list(stream(made))
    first, second = ([w.id.split(".", 1)[1] for b in batches for w in b.windows if w.id[0] == e] for e in "01")
    assert sorted(first) == sorted(second) and first != second
    assert tokens(stream(source(tmp_path, 12, seed=1))) != tokens(batches)
    assert tokens(stream(source(tmp_path, 12, seed=0))) == tokens(batches)


def test_trajectories_come_in_another_order_each_epoch_however_little_is_shuffled(tmp_path):
    made = source(tmp_path, 12)
    ids = [window.id.split("/")[0] for batch in stream(made, block=1) for window in batch.windows]
    first, second = ([name[2:] for name, _ in itertools.groupby(ids) if name[0] == epoch] for epoch in "01")
    assert sorted(first) == sorted(second) and first != second and first != sorted(first)


def test_neighbours_in_a_trajectory_are_shuffled_apart(whole):
    made, _ = whole
    ids = [window.id for batch in stream(made, block=10**6, epochs=1) for window in batch.windows]
    follows = sum(a.split("/")[0] == b.split("/")[0] for a, b in itertools.pairwise(ids))
    assert follows < len(ids) / 3


def test_epochs_are_counted_as_they_go_by(whole):
    _, batches = whole
    epochs = [batch.epochs for batch in batches]
    assert epochs == sorted(epochs) and 0 < epochs[0] < 1 and epochs[-1] == 2.0


def test_what_is_held_out_is_never_trained_and_its_evaluation_is_bounded(tmp_path):
    train = source(tmp_path, 30, wanted=lambda row: not is_held_out(row.id, 0.3))
    kept = source(tmp_path, 30, wanted=lambda row: is_held_out(row.id, 0.3))
    trained = {int(t) for batch in stream(train, epochs=1) for w in batch.windows for t in w.tokens_T}
    held_out = held_out_windows(kept, 10**6)
    evaluated = {int(t) for window in held_out for t in window.tokens_T}
    assert trained and evaluated and not trained & evaluated
    some = held_out_windows(kept, 100)
    assert 0 < sum(len(window.tokens_T) for window in some) <= 100
    with pytest.raises(UserError, match="held_out_tokens=3 is under the first window"):
        held_out_windows(kept, 3)


def test_about_a_share_is_held_out():
    assert 160 < sum(is_held_out(f"t{i}", 0.2) for i in range(1000)) < 240
    assert not any(is_held_out(f"t{i}", 0.0) for i in range(1000))


def test_a_prefix_that_fills_a_window_is_said_with_its_place(tmp_path):
    made = source(tmp_path, 1)
    long = {"tokens": [1] * 60, "agent": [0] * 59 + [1]}
    (tmp_path / "data.jsonl").write_text(json.dumps(long))
    made = WindowSource(DataSet(open_files(str(tmp_path), "data"), None), made.encoder, RULE, 0, lambda row: True)
    with pytest.raises(UserError, match="data.jsonl: line 1: field prefix: .*raise window.max_tokens"):
        list(stream(made))
