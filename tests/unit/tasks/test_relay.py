"""relay: tasks that can be solved as told, held-out ones that training never gives, a demonstrator of known skill."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks, is_held_out


def chain_of(task) -> tuple:
    return tuple(task.secret["chain"]), task.secret["expected"]


@given(st.integers(1, 8), st.integers(0, 10**6), st.integers(0, 3))
def test_following_the_files_gives_the_code(difficulty, index, seed):
    task = RelayTasks(seed=seed).train(difficulty, index)
    name, digits = next(name for name in task.files if f"from the file {name}." in task.instruction), ""
    for _ in range(difficulty):
        first, second = task.files[name].decode().splitlines()
        digits += first.removeprefix("digit ")
        name = second.removeprefix("next ")
    assert (digits, name) == (task.secret["expected"], "end")
    assert task.secret["expected"] not in task.instruction


@given(st.integers(1, 6), st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 5))
def test_held_out_chains_are_of_no_training_stream(difficulty, index, seed, other_seed):
    assert is_held_out(*chain_of(RelayTasks(seed=seed).held_out(difficulty, index)))
    assert not is_held_out(*chain_of(RelayTasks(seed=other_seed).train(difficulty, index)))


def test_the_same_arguments_give_the_same_task():
    assert RelayTasks(seed=3).train(4, 17) == RelayTasks(seed=3).train(4, 17)
    assert RelayTasks(seed=3).train(4, 17) != RelayTasks(seed=4).train(4, 17)


def test_a_flawless_demonstrator_notes_every_digit_and_submits():
    task = RelayTasks().train(4, 0)
    turns = RelayDemonstrator(forgets=0, gives_up=0).demonstrate(task, random.Random(0))
    noted = "".join(command.split()[1] for command, _ in turns if command.startswith("echo "))
    assert noted == task.secret["expected"]
    assert [command for command, _ in turns][-1] == "submit"
    assert turns[-2][0].endswith("cp notes answer")


def test_a_careless_one_forgets_as_often_as_it_is_told_to():
    demonstrator, rng = RelayDemonstrator(forgets=0.3, gives_up=0), random.Random(0)
    commands = [c for i in range(300) for c, _ in demonstrator.demonstrate(RelayTasks().train(4, i), rng)[1:-1]]
    forgotten = sum(not command.startswith("echo ") for command in commands) / len(commands)
    assert forgotten == pytest.approx(0.3, abs=0.05)


def test_a_difficulty_out_of_range_is_refused():
    with pytest.raises(ValueError, match="1 to"):
        RelayTasks().train(0, 0)
