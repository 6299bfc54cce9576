"""Admission: how far sampling may run ahead of learning."""

from hypothesis import given
from hypothesis import strategies as st

from klong_rl.config import StageConfig
from klong_rl.schedule import difficulty_of, evaluation, evaluation_prefix, groups_to_admit, stage_of, training_group
from klong_rl.tasks.relay import RelayTasks

STAGE = StageConfig(difficulty=3, timeout_s=9.0, max_turns=7, steps=5)


@given(steps=st.integers(1, 12), per_step=st.integers(1, 6), staleness=st.integers(0, 3))
def test_no_group_is_older_than_the_bound_and_a_stage_ends_with_nothing_left(steps, per_step, staleness):
    """Groups finish in order of admission, and one step trains the oldest: the slowest learner that can be."""
    queue: list[int] = []  # policy version at admission
    for step in range(steps):
        queue += [step] * groups_to_admit(len(queue), steps - step, per_step, staleness)
        assert len(queue) >= per_step, "the learner is never starved by admission"
        trained, queue = queue[:per_step], queue[per_step:]
        assert all(step - admitted <= staleness for admitted in trained)
    assert queue == []


def test_the_same_index_gives_the_same_episodes():
    first, again = (training_group(RelayTasks(), 2, STAGE, index=4, size=3) for _ in range(2))
    assert first == again
    assert len({spec.id for spec in first}) == 3
    assert {(spec.group, spec.purpose, spec.stage, spec.max_turns) for spec in first} == {("s2-g4", "train", 2, 7)}
    assert len({spec.task.id for spec in first}) == 1


def test_a_mix_gives_each_difficulty_its_share_and_the_same_index_the_same_task():
    stage = StageConfig(difficulty=4, mix={2: 1.0, 4: 3.0})
    drawn = [difficulty_of(2, stage, index) for index in range(2000)]
    assert drawn == [difficulty_of(2, stage, index) for index in range(2000)]
    assert 0.21 < drawn.count(2) / len(drawn) < 0.29 and set(drawn) == {2, 4}
    assert {difficulty_of(2, STAGE, index) for index in range(9)} == {3}


def test_a_group_tells_its_stage():
    assert stage_of(training_group(RelayTasks(), 12, STAGE, index=4, size=2)[0].group) == 12


def test_evaluation_is_one_attempt_at_each_held_out_task():
    specs = evaluation(RelayTasks(), "cold-v1", 2, STAGE, episodes=5)
    assert len({spec.task.id for spec in specs}) == len({spec.group for spec in specs}) == 5
    assert all(spec.group.startswith(evaluation_prefix("cold-v1", 2)) and spec.group_size == 1 for spec in specs)
    assert all(spec.purpose == "eval" and "held-out" in spec.task.id for spec in specs)
