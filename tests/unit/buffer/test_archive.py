"""What a row of the archive says, and that the files are whole, in order, and know what they hold."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from klong_rl.buffer import EpisodeView, Member
from klong_rl.buffer.archive import SCHEMA, ArchiveFiles, ConsumedGroup, rows_of, turn_of
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict
from klong_rl.windows import split, window_of_each
from klong_rl.wire import encode

PREFIX = np.arange(3, dtype=np.int32)


def spec(i: int, group: str = "g") -> EpisodeSpec:
    task = Task(id="relay/train/0", family="relay", instruction="Follow.", image="none")
    return EpisodeSpec(
        id=f"{group}-{i}", group=group, group_size=2, stage=2, purpose="train", task=task, timeout_s=9.0, max_turns=4
    )


def turn(index: int, context_start: int = 0) -> Turn:
    return Turn(
        index=index, context_start=context_start, action_A=np.array([10 * index, 1, 2], np.int32),
        logprobs_A=np.array([-0.5, -0.25, 0], np.float32), versions=((4, 1), (6, 2)),
        observation_O=np.array([7, 8], np.int32), command="ls", exit_code=2, seconds=0.5, chain=b"link",
    )  # fmt: skip


def judged(one: EpisodeSpec, *turns: Turn) -> tuple[Member, EpisodeView]:
    segments = [Segment(episode=one.id, epoch=1, seq=i, turns=(t,)) for i, t in enumerate(turns)]
    if segments:
        segments[0] = Segment(episode=one.id, epoch=1, seq=0, turns=turns[:1], prefix_P=PREFIX)
    outcome, verdict = Outcome(kind="timeout", detail="9 s"), Verdict(score=0.5, parts={"a": 0.5}, evidence={"j": "x"})
    view = EpisodeView(one, "judged", 1, 0, "judge", len(segments), outcome, verdict, "")
    return Member(one, outcome, verdict, segments), view


def dropped(one: EpisodeSpec) -> tuple[Member, EpisodeView]:
    view = EpisodeView(one, "dropped", 3, 2, "actor", 0, None, None, "image is gone")
    return Member(one, None, None, []), view


def group_of(*pairs: tuple[Member, EpisodeView], name: str = "g", windows: slice = slice(None)) -> ConsumedGroup:
    members, views = zip(*pairs, strict=True)
    made = []
    for member in members:
        turns = [t for segment in member.segments for t in segment.turns]
        made += split(member.spec, PREFIX, turns, 0.5)
    return ConsumedGroup(name, 7, list(members), list(views), made[windows])


def test_a_row_a_turn_with_all_that_was_sampled(tmp_path):
    files = ArchiveFiles(tmp_path / "archive")
    files.write([group_of(judged(spec(0), turn(0), turn(1), turn(2, 1)), dropped(spec(1)))])
    table = pq.read_table(tmp_path / "archive")
    assert table.schema.equals(SCHEMA)
    first, second, third, gone = table.to_pylist()
    assert first == {
        "group": "g", "episode": "g-0", "task": "relay/train/0", "stage": 2, "purpose": "train", "step": 7, "epoch": 1,
        "outcome": "timeout", "outcome_detail": "9 s", "dropped": None, "score": 0.5, "turn": 0, "context_start": 0,
        "follows": None, "prompt": None, "masked": None,
        "action": [0, 1, 2], "logprobs": [-0.5, -0.25, 0.0], "versions": [4, 6, 6], "observation": [7, 8],
        "command": "ls", "exit_code": 2, "seconds": 0.5, "interrupted": False, "chain": b"link",
        "window": "g-0/w0", "advantage": 0.0, "prefix": [0, 1, 2],
        "score_parts": [("a", 0.5)], "evidence": [("j", "x")],
    }  # fmt: skip
    assert [second[name] for name in ("turn", "prefix", "score_parts", "evidence")] == [1, None, None, None]
    assert (third["turn"], third["context_start"], third["window"]) == (2, 1, "g-0/w1")
    assert (gone["episode"], gone["dropped"], gone["epoch"]) == ("g-1", "image is gone", 3)
    assert all(gone[name] is None for name in ("turn", "action", "score", "outcome", "window", "prefix"))


def test_a_turn_of_an_agent_from_outside_comes_back_as_it_was(tmp_path):
    prompt_T = np.array([3, 4], np.int32)
    first = replace(turn(0), prompt_T=prompt_T, observation_O=np.zeros(0, np.int32))
    turns = [first, replace(first, index=1, follows=0), replace(first, index=2, follows=0, masked="unread")]
    files = ArchiveFiles(tmp_path / "archive")
    files.write([group_of(judged(spec(0), *turns))])
    rows = pq.read_table(tmp_path / "archive").to_pylist()
    assert [encode(turn_of(row)) for row in rows] == [encode(each) for each in turns]
    assert [row["window"] for row in rows] == ["g-0/w0", "g-0/w0", None]


def test_a_file_from_before_agents_from_outside_is_read(tmp_path):
    files = ArchiveFiles(tmp_path / "archive")
    files.write([group_of(judged(spec(0), turn(0)))])
    (row,) = pq.read_table(tmp_path / "archive").drop(["follows", "prompt", "masked"]).to_pylist()
    assert encode(turn_of(row)) == encode(turn(0))


def test_a_turn_whose_window_was_too_old_names_no_window():
    rows = list(rows_of(group_of(judged(spec(0), turn(0), turn(1, 1)), windows=slice(1, None))))
    assert [row.get("window") for row in rows] == [None, "g-0/w1"]
    assert [row["turn"] for row in rows] == [0, 1]


def test_an_episode_cut_before_its_first_action_has_a_row():
    (row,) = rows_of(group_of(judged(spec(0))))
    assert row["score"] == 0.5 and "turn" not in row


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_each_turn_is_given_the_window_that_it_is_a_target_of(new_start):
    starts = np.cumsum([False, *new_start])
    turns = [turn(index, int(start)) for index, start in enumerate(starts)]
    named = window_of_each(spec(0), turns)
    for window in split(spec(0), PREFIX, turns):
        mine = [t.action_A for t, name in zip(turns, named, strict=True) if name == window.id]
        assert np.concatenate(mine).tolist() == window.tokens_T[window.targets_T == 1].tolist()


def test_files_are_numbered_in_order_and_know_their_groups(tmp_path):
    files = ArchiveFiles(tmp_path / "archive")
    assert files.groups() == set() and files.paths() == []
    for name in ("a", "b/ü"):
        files.write([group_of(judged(spec(0, name), turn(0)), name=name)])
    assert [path.name for path in ArchiveFiles(files.folder).paths()] == [
        "groups-000001.parquet", "groups-000002.parquet",
    ]  # fmt: skip
    assert ArchiveFiles(files.folder).groups() == {"a", "b/ü"}
    assert [path.name for path in files.folder.iterdir() if not path.name.startswith("groups-")] == []


def test_a_write_that_fails_leaves_no_file(tmp_path):
    files = ArchiveFiles(tmp_path / "archive")
    member, view = judged(spec(0), turn(0))
    broken = EpisodeView(*view[:2], "no number", *view[3:])
    with pytest.raises(Exception, match="no number"):
        files.write([ConsumedGroup("g", 1, [member], [broken], [])])
    assert files.paths() == []
