"""What the command line of a look accepts, and where a buffer is looked for."""

import json

import pytest

from klong_rl.errors import UserError
from klong_rl.status import find, parse


def test_the_run_and_whether_to_watch(tmp_path):
    assert parse([f"run={tmp_path}"]) == (tmp_path, False)
    assert parse(["watch=true", f"run={tmp_path}"]) == (tmp_path, True)


@pytest.mark.parametrize(
    "arguments, named",
    [
        ([], "no run is named"),
        (["watch=true"], "no run is named"),
        (["run="], "run="),
        (["run=x", "watch=yes"], "watch=yes"),
        (["runs/x"], "runs/x"),
        (["run=x", "seed=1"], "seed=1"),
    ],
)
def test_anything_else_is_refused_in_one_line(arguments, named):
    with pytest.raises(UserError, match=named) as refused:
        parse(arguments)
    assert "run=DIR" in str(refused.value) and "\n" not in str(refused.value)


def test_a_directory_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="doesn't exist"):
        find(tmp_path / "absent")
    with pytest.raises(UserError, match="isn't a run"):
        find(tmp_path)


def test_a_run_with_a_redis_of_its_own_choice_is_looked_up_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"buffer": {"url": "redis://host:6379"}}))
    assert find(tmp_path).url == "redis://host:6379"


def test_a_socket_that_nobody_listens_on_is_a_run_that_is_down(tmp_path):
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    assert find(tmp_path).url == ""
    (tmp_path / "redis" / "redis.sock").touch()
    assert find(tmp_path).url == ""
