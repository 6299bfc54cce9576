"""The table of episodes: what a row says, filters, order, pages."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.dashboard.index import ROWS, EpisodeIndex, Query, facets, select
from tests.made_runs import RunMaker, Said


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    maker = RunMaker(tmp_path_factory.mktemp("run"))
    said = [Said("ls", "ls", "a b"), Said("cat a", "cat a", "no such file", 1)]
    trained = maker.group("s1-g0", [said, said[:1], said], step=3)
    held_out = maker.group("eval-g1", [said], task="relay/held-out/7", stage=2, step=None)
    empty = maker.group("s1-g2", [[]])
    dropped = empty._replace(
        members=[empty.members[0]._replace(outcome=None, verdict=None, segments=[])],
        views=[empty.views[0]._replace(state="dropped", reason="the image is gone")],
    )
    maker.files.write([trained, held_out])
    maker.files.write([dropped])
    index = EpisodeIndex(maker.run_dir)
    index.read_more(index.unread())
    return maker, index, trained


def names(page):
    return [row["episode"] for row in page.rows]


def test_a_row_adds_up_the_turns_of_its_episode(made):
    _, index, trained = made
    row = index.row("s1-g0-e2")
    turns = trained.members[2].segments[0].turns
    assert row["turns"] == 2
    assert row["tokens"] == sum(len(turn.action_A) for turn in turns)
    assert row["seconds"] == pytest.approx(sum(turn.seconds for turn in turns))
    assert (row["oldest"], row["newest"]) == (0, 1)
    assert row["score"] == pytest.approx(2 / 3) and row["advantage"] == pytest.approx(2 / 3 - 0.5)
    assert (row["step"], row["stage"], row["outcome"], row["state"]) == (3, 1, "turn_limit", "archived")


def test_an_episode_without_turns_has_a_row_with_the_reason(made):
    _, index, _ = made
    row = index.row("s1-g2-e0")
    assert (row["dropped"], row["turns"], row["tokens"]) == ("the image is gone", 0, 0)
    assert row["score"] is None and row["oldest"] is None and row["advantage"] is None


@pytest.mark.parametrize(
    "query, expected",
    [
        (Query(), ["s1-g2-e0", "eval-g1-e0", "s1-g0-e2", "s1-g0-e1", "s1-g0-e0"]),
        (Query(descending=False, limit=2), ["s1-g0-e0", "s1-g0-e1"]),
        (Query(offset=3), ["s1-g0-e1", "s1-g0-e0"]),
        (Query(stage=2), ["eval-g1-e0"]),
        (Query(purpose="train", min_turns=2), ["s1-g0-e2", "s1-g0-e0"]),
        (Query(outcome="turn_limit"), ["s1-g0-e2"]),
        (Query(text="HELD-out"), ["eval-g1-e0"]),
        (Query(text="image is gone"), ["s1-g2-e0"]),
        (Query(text="[.*"), []),
        (Query(step=3, max_score=0.5), ["s1-g0-e1", "s1-g0-e0"]),
        (Query(min_score=0.5), ["s1-g0-e2"]),
        (Query(sort="score", purpose="train"), ["s1-g0-e2", "s1-g0-e1", "s1-g0-e0", "s1-g2-e0"]),
        (Query(sort="score", descending=False, purpose="train"), ["s1-g0-e0", "s1-g0-e1", "s1-g0-e2", "s1-g2-e0"]),
        (Query(sort="no such column", limit=1), ["s1-g2-e0"]),
    ],
)
def test_what_a_query_finds(made, query, expected):
    assert names(select(made[1].table, query)) == expected


def test_files_that_come_later_are_taken_in_once(made):
    maker, _, _ = made
    index = EpisodeIndex(maker.run_dir)
    first, second = index.unread()
    index.read_more([first])
    assert "s1-g2-e0" not in index and index.unread() == [second]
    index.read_more([second])
    assert "s1-g2-e0" in index and index.unread() == []
    assert index.file_of("s1-g2-e0") == second and index.file_of("s1-g0-e0") == first
    assert index.file_of("nobody") is None
    assert {row["episode"] for row in index.group("s1-g0")} == {"s1-g0-e0", "s1-g0-e1", "s1-g0-e2"}


def test_facets_count_what_there_is(made):
    found = facets(made[1].table)
    assert found["stage"] == {"1": 4, "2": 1} and found["purpose"] == {"eval": 1, "train": 4}
    assert found["outcome"] == {"submitted": 3, "turn_limit": 1}
    assert facets(ROWS.empty_table()) == {"stage": {}, "purpose": {}, "state": {}, "outcome": {}}


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30), st.booleans(), st.integers(1, 7))
def test_pages_are_the_whole_in_order_once_each(scores, descending, limit):
    rows = [{"episode": str(i), "score": score} for i, score in enumerate(scores)]
    table = pa.Table.from_pylist(rows, ROWS)
    pages = [
        select(table, Query(sort="score", descending=descending, offset=offset, limit=limit))
        for offset in range(0, len(rows) + 1, limit)
    ]
    found = [row for page in pages for row in page.rows]
    assert sorted(row["episode"] for row in found) == sorted(row["episode"] for row in rows)
    known = [row["score"] for row in found if row["score"] is not None]
    assert known == sorted(known, reverse=descending)
    assert all(row["score"] is None for row in found[len(known) :])
    assert all(page.total == len(rows) for page in pages)
    assert np.all([len(page.rows) <= limit for page in pages])
