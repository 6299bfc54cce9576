"""Files of trajectories: every row is found, whatever the form, and bad ones are named."""

import json
import os
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klong_rl.buffer.archive import ArchiveFiles, ConsumedGroup
from klong_rl.buffer.records import EpisodeView, Member
from klong_rl.errors import UserError
from klong_rl.fine_tuning.files import DataSet, open_files
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict


def talk(name: str, score: float | None = None) -> dict:
    messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "ls"}]
    return {"id": name, "messages": messages} | ({} if score is None else {"score": score})


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ids(data: DataSet) -> list[str]:
    return [row.id for unit in range(len(data)) for _, row in data.rows(unit)]


def test_every_line_is_a_unit_that_is_read_in_any_order(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [talk("ä"), talk("b")])
    (tmp_path / "b.jsonl").write_text("\n" + json.dumps(talk("c")) + "\n\n" + json.dumps(talk("d")))
    data = DataSet(open_files(str(tmp_path), "data"), None)
    assert [[row.id for _, row in data.rows(unit)] for unit in (3, 0, 2, 1)] == [["d"], ["ä"], ["c"], ["b"]]
    assert [row.where for _, row in data.rows(3)] == [f"{tmp_path / 'b.jsonl'}: line 4"]
    assert data.check(lambda row: None) == 4


def test_a_file_a_folder_and_a_pattern(tmp_path):
    for name in ("a1", "a2", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [talk(name)])
    for named, wanted in (("", ["a1", "a2", "b"]), ("a*.jsonl", ["a1", "a2"]), ("b.jsonl", ["b"])):
        assert ids(DataSet(open_files(str(tmp_path / named), "data"), None)) == wanted


def test_parquet_has_the_same_rows_as_jsonl(tmp_path):
    rows = [talk("a", 1.0), talk("b", 0.5), talk("c", 0.0)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=2)
    data = DataSet(open_files(str(tmp_path / "d.parquet"), "data"), None)
    assert len(data) == 2 and ids(data) == ["a", "b", "c"]
    names = [name for unit in range(2) for name, _ in data.rows(unit)]
    assert names == ["0.1", "0.2", "0.3"]


def test_token_ids_in_parquet(tmp_path):
    table = pa.table({"tokens": [[1, 2, 3], [4, 5]], "agent": [[False, True, True], [False, True]]})
    pq.write_table(table, tmp_path / "t.parquet")
    data = DataSet(open_files(str(tmp_path / "t.parquet"), "data"), None)
    made = [row.content for _, row in data.rows(0)]
    assert [(t.prefix_P.tolist(), t.tokens_T.tolist()) for t in made] == [([1], [2, 3]), ([4], [5])]


def test_rows_that_scored_too_little_are_left_out(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [talk("a", 0.8), talk("b", 0.79), talk("c", 1)])
    files = open_files(str(tmp_path / "a.jsonl"), "data")
    assert ids(DataSet(files, 0.8)) == ["a", "c"]
    with pytest.raises(UserError, match="no trajectory with a score of min_score=1.5 or more"):
        DataSet(files, 1.5).check(lambda row: None)
    write_jsonl(tmp_path / "b.jsonl", [talk("a")])
    with pytest.raises(UserError, match="b.jsonl: line 1: field score: is missing and min_score=0.8"):
        DataSet(open_files(str(tmp_path / "b.jsonl"), "data"), 0.8).check(lambda row: None)


def test_the_first_bad_row_is_found_before_anything_starts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [talk("a"), talk("b"), {"id": "c"}])
    with pytest.raises(UserError, match="a.jsonl: line 3: field messages"):
        DataSet(open_files(str(tmp_path / "a.jsonl"), "data"), None).check(lambda row: None)
    (tmp_path / "b.jsonl").write_text('{"id": \n')
    with pytest.raises(UserError, match="b.jsonl: line 1: not a JSON object"):
        DataSet(open_files(str(tmp_path / "b.jsonl"), "data"), None).check(lambda row: None)
    pq.write_table(pa.Table.from_pylist([talk("a"), {"messages": [{"role": "user"}]}]), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c.parquet: row 2: field messages\[0\].content"):
        DataSet(open_files(str(tmp_path / "c.parquet"), "data"), None).check(lambda row: None)


def test_a_row_without_an_id_is_the_same_one_wherever_its_folder_is(tmp_path):
    row = {"messages": talk("a")["messages"]}
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "a.jsonl", [row, row])
    here, there = (ids(DataSet(open_files(str(tmp_path / name), "data"), None)) for name in ("here", "there"))
    assert here == there and len(set(here)) == 2


def test_more_files_than_a_process_may_have_open(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(200):
        write_jsonl(tmp_path / f"{number:03}.jsonl", [talk(str(number))])
        if number < 50:
            pq.write_table(pa.Table.from_pylist([talk(f"p{number}")]), tmp_path / f"{number:03}.parquet")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 32, hard))
    try:
        assert DataSet(open_files(str(tmp_path), "data"), None).check(lambda row: None) == 250
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_no_data_is_said(tmp_path):
    with pytest.raises(UserError, match="data=/nowhere/x names no .jsonl or .parquet"):
        open_files("/nowhere/x", "data")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UserError, match="held_out: .*a.csv is neither"):
        open_files(str(tmp_path / "a.csv"), "held_out")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(UserError, match="can't be read as Parquet"):
        open_files(str(tmp_path / "a.parquet"), "data")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="it needs messages, or tokens and agent"):
        open_files(str(tmp_path / "b.parquet"), "data")


def member(name: str, score: float | None, purpose: str = "train") -> tuple[Member, EpisodeView]:
    """An episode of two turns; without a score it was dropped."""
    task = Task(id="t", family="f", instruction="i", image="m")
    spec = EpisodeSpec(id=name, group="g", group_size=1, stage=1, purpose=purpose, task=task, timeout_s=1, max_turns=2)
    turns = tuple(
        Turn(
            index=index,
            context_start=0,
            action_A=np.array([10 + index, 1], np.int32),
            logprobs_A=np.zeros(2, np.float32),
            versions=((1, 2),),
            observation_O=np.array([20 + index] * (1 - index), np.int32),
        )
        for index in range(2)
    )
    segment = Segment(episode=name, epoch=1, seq=0, turns=turns, prefix_P=np.array([5, 6], np.int32))
    scored = score is not None
    verdict = Verdict(score=score) if scored else None
    outcome = Outcome(kind="submitted" if scored else "infrastructure")
    view = EpisodeView(spec, "judged" if scored else "dropped", 1, 0, "", 2, outcome, verdict, "" if scored else "lost")
    return Member(spec, outcome, verdict, [segment]), view


def test_the_archive_of_a_run_gives_its_scored_training_episodes(tmp_path):
    members = [member("a", 1.0), member("b", 0.2), member("c", None), member("d", 1.0, purpose="eval")]
    group = ConsumedGroup("g", 1, [made for made, _ in members], [view for _, view in members], [])
    ArchiveFiles(tmp_path).write([group])
    assert ids(DataSet(open_files(str(tmp_path), "data"), None)) == ["a", "b"]
    data = DataSet(open_files(str(tmp_path), "data"), 0.8)
    ((_, row),) = data.rows(0)
    assert row.id == "a" and row.content.prefix_P.tolist() == [5, 6]
    assert row.content.tokens_T.tolist() == [10, 1, 20, 11, 1]
    assert row.content.agent_T.tolist() == [1, 1, 0, 1, 1]
