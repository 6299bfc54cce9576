"""An attempt's file, and which attempts are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.distill import training_tasks
from klong_rl.distillation.attempt import by_characters
from klong_rl.distillation.journal import Ended, Intended, Journal, Judged, Parked, Turned
from klong_rl.distillation.selection import Candidate, best
from klong_rl.distillation.teacher import command_of
from klong_rl.errors import UserError
from klong_rl.judging.protocols import Usage
from klong_rl.tasks.relay import RelayTasks

EVENTS = [
    Intended(command="ls", usage=Usage(requests=1), seconds=2.0),
    Turned(observation="a", seconds=1.0),
    Parked(image="sha256:x"),
    Intended(command="submit"),
    Turned(observation="", is_end=True),
    Ended(kind="submitted"),
    Judged(score=0.5, parts={}, evidence={}, usage=Usage(requests=2)),
]


@given(cut=st.integers(0, 2000))
def test_a_file_cut_anywhere_is_read_up_to_its_last_whole_event(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("j") / "a.jsonl"
    journal = Journal(path)
    for event in EVENTS:
        journal.add(event)
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    again = Journal(path)
    n = data[:cut].count(b"\n")
    assert [again.intended, again.turned] == [
        [e for e in EVENTS[:n] if isinstance(e, Intended)],
        [e for e in EVENTS[:n] if isinstance(e, Turned)],
    ]
    again.add(Parked(image="more"))
    assert Journal(path).parked == "more", "what is added stands on a line of its own"


def test_a_journal_knows_what_was_spent_and_can_begin_anew(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    for event in EVENTS:
        journal.add(event)
    assert journal.usage == Usage(requests=3) and journal.seconds == 3.0
    journal.restart()
    assert not journal.intended and journal.judged is None and (tmp_path / "a.lost-0").exists()


def test_a_snapshot_is_of_use_until_the_next_action(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    for event in EVENTS[:3]:
        journal.add(event)
    assert Journal(tmp_path / "a.jsonl").parked == "sha256:x"
    journal.add(EVENTS[3])
    assert journal.parked == "" == Journal(tmp_path / "a.jsonl").parked


def candidate(name: str, task: str, score: float, turns: int = 5) -> Candidate:
    return Candidate(id=name, task=task, score=score, turns=turns)


def test_the_best_of_each_task_are_kept_if_they_are_good_enough():
    found = [candidate("a", "t", 0.6), candidate("b", "t", 0.9), candidate("c", "t", 0.9, 3), candidate("d", "u", 0.4)]
    assert [each.id for each in best(found, 2, 0.5)] == ["c", "b"]
    assert [each.id for each in best(found, 9, 0.0)] == ["c", "b", "a", "d"]


@given(st.lists(st.tuples(st.sampled_from("tuv"), st.floats(0, 1)), max_size=20), st.integers(1, 4), st.floats(0, 1))
def test_no_attempt_that_is_left_out_is_better_than_one_that_is_kept(drawn, keep, least):
    found = [candidate(str(i), task, score) for i, (task, score) in enumerate(drawn)]
    kept = best(found, keep, least)
    for each in set(found) - set(kept):
        of_task = [other for other in kept if other.task == each.task]
        assert each.score < least or (len(of_task) == keep and min(o.score for o in of_task) >= each.score)


def test_tasks_without_an_end_need_a_count():
    assert len(training_tasks(RelayTasks(), 2, 3)) == 3
    with pytest.raises(UserError, match="set count="):
        training_tasks(RelayTasks(), 2, 0)


def test_an_answer_that_is_one_block_is_the_command_in_it():
    assert command_of("```sh\nls -l\n```\n") == "ls -l" and command_of("see:\n```\nls\n```").startswith("see:")


def test_an_observation_is_cut_in_the_middle():
    assert by_characters(1)("x" * 8) == "x" * 8 and by_characters(1)("abcdefghij") == "abcd ... ghij"
