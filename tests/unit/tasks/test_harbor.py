"""Folders in Harbor's format: what is read from them, and what is refused with which reason."""

import io
import random
import tarfile

import pytest

from klong_rl.errors import UserError
from klong_rl.failures import TaskFailure
from klong_rl.rewards.harbor import parse_rewards
from klong_rl.tasks.dockerfile import missing
from klong_rl.tasks.harbor import HarborTasks, ReferenceSolution, Refusal, load_task, packed
from klong_rl.types import Network

TOML = """version = "1.0"
[metadata]
difficulty = "hard"
[verifier]
timeout_sec = 240.0
[agent]
timeout_sec = 900.0
[environment]
cpus = 2
memory_mb = 4096
allow_internet = false
"""


def folder(root, name="t", toml=TOML, dockerfile="FROM a\nCOPY data/ /data\n", **files):
    made = root / name
    for path, text in {
        "task.toml": toml,
        "instruction.md": "Do it.",
        "environment/Dockerfile": dockerfile,
        "environment/data/x": "1",
        "tests/test.sh": "exit 0",
        **files,
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    return made


def test_what_the_folder_says_is_what_the_task_has(tmp_path):
    task = load_task(folder(tmp_path))
    assert task.id == "harbor/t" and task.instruction == "Do it."
    assert task.image == f"dockerfile:{tmp_path}/t/environment"
    assert (task.limits.cpus, task.limits.memory_mb, task.limits.disk_mb) == (2.0, 4096, 10240)
    assert (task.limits.user, task.limits.workdir, task.limits.read_only) == ("", "", ())
    assert task.limits.network is None and task.timeout_s == 900.0
    assert task.secret["verifier_s"] == 240.0 and task.secret["part"] == "hard" and not task.secret["solution"]
    assert not any("tests" in path for path in task.files), "the agent never sees them"


@pytest.mark.parametrize(
    ("says", "override", "network"),
    [
        ("allow_internet = true", "task", Network(allow=("*",))),
        ("cpus = 1", "task", Network(allow=("*",))),
        ("allow_internet = true", [], None),
        ("allow_internet = false", ["pypi.org"], Network(allow=("pypi.org",))),
        ('network_mode = "no-network"', "task", None),
        ('network_mode = "allowlist"\nallowed_hosts = ["a.org"]', "task", Network(allow=("a.org",))),
    ],
)
def test_the_network_is_the_tasks_unless_the_user_says_otherwise(tmp_path, says, override, network):
    assert load_task(folder(tmp_path, toml=f"[environment]\n{says}\n"), override).limits.network == network


def test_sizes_as_they_were_written_before(tmp_path):
    limits = load_task(folder(tmp_path, toml='[environment]\nmemory = "1.5G"\nstorage = "512M"\n')).limits
    assert (limits.memory_mb, limits.disk_mb) == (1536, 512)


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("[", "task.toml is no TOML"),
        ("environment = 3", "environment in task.toml is no table"),
        ("[[steps]]\nname = 'a'", "several steps"),
        ("[environment]\ngpus = 1", "a GPU"),
        ("[environment]\nos = 'windows'", "another system"),
        ("[environment]\nmcp_servers = [{name = 'a'}]", "MCP servers"),
        ("[environment]\nenv = {A = 'b'}", "variables in the agent's environment"),
        ("[environment]\ncpus = -1", "cpus=-1"),
        ("[environment]\nmemory = 'much'", "memory='much'"),
        ("[verifier]\nenvironment_mode = 'separate'", "a container of its own"),
        ("[verifier.env]\nKEY = '${OPENAI_API_KEY}'", "variables of the host"),
        ("[agent]\nuser = 'bob'", "users of its own"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(tmp_path, toml, why):
    with pytest.raises(Refusal, match=why):
        load_task(folder(tmp_path, toml=toml))


def test_a_folder_that_lacks_something_is_refused_and_the_others_go_on(tmp_path):
    for name in ("instruction.md", "tests/test.sh", "task.toml", "environment/Dockerfile"):
        (folder(tmp_path, name.replace("/", "-")) / name).unlink()
    folder(tmp_path, "compose", **{"environment/docker-compose.yaml": "a: b"})
    folder(tmp_path, "copies", dockerfile="FROM a\nCOPY data/x data/absent /data/\n")
    folder(tmp_path, "good")
    family = HarborTasks(str(tmp_path))
    assert [task.id for task in family.all] == ["harbor/good"]
    assert family.refused["instruction.md"] == "no instruction.md" and "several containers" in family.refused["compose"]
    assert family.refused["copies"] == "its Dockerfile copies what isn't in environment/: data/absent"
    assert len(family.refused) == 6
    with pytest.raises(UserError, match="is no folder"):
        HarborTasks(str(tmp_path / "absent")).train(1, 0)


def test_training_and_held_out_tasks_are_never_the_same(tmp_path):
    for number in range(10):
        folder(tmp_path, f"t{number}")
    family = HarborTasks(str(tmp_path))
    train, held_out = ({ask(1, index).id for index in range(30)} for ask in (family.train, family.held_out))
    assert len(train) == 8 and len(held_out) == 2 and not train & held_out


@pytest.mark.parametrize(
    ("copy", "absent"),
    [
        ("COPY . /x", []),
        ("COPY data/* /x/", []),
        ("COPY nothing* /x/", ["nothing*"]),
        ("COPY --chown=a:a data \\\n  # a remark\n  gone /x/", ["gone"]),
        ('COPY ["data/x", "two words", "/x/"]', ["two words"]),
        ("COPY --from=0 /gone /x", []),
        ("ADD https://host/gone /x", []),
        ("COPY ${WHAT} /x", []),
        ("COPY <<EOF /x\nCOPY\nEOF", []),
        ("# COPY gone /x\nRUN echo COPY gone /x", []),
    ],
)
def test_what_a_dockerfile_copies_is_looked_for(tmp_path, copy, absent):
    assert missing(folder(tmp_path, dockerfile=f"FROM a\n{copy}\n") / "environment") == absent


@pytest.mark.parametrize("text", ["", "nan", "1e999", "one"])
def test_a_text_that_is_no_finite_number_is_no_reward(text):
    with pytest.raises(ValueError):
        parse_rewards("reward.txt", text)


@pytest.mark.parametrize("text", ["{}", '{"a": 1, "b": 0}', '{"reward": "1"}', '{"reward": true}', "[1]", "NaN"])
def test_rewards_in_json_need_one_that_counts(text):
    with pytest.raises(ValueError):
        parse_rewards("reward.json", text)


def test_of_several_rewards_the_one_called_so_counts():
    assert parse_rewards("reward.json", '{"reward": 0.5, "speed": 3}') == {"reward": 0.5, "speed": 3.0}
    assert parse_rewards("reward.json", "0.25") == {"reward": 0.25}


def test_the_reference_types_what_the_solution_holds(tmp_path):
    task = load_task(folder(tmp_path, **{"solution/solve.sh": "echo hi", "solution/more/x": "1"}))
    [(command, _), (submit, _)] = ReferenceSolution().demonstrate(task, random.Random(0))
    assert submit == "submit" and command.endswith("/solution/solve.sh")
    assert ReferenceSolution(empty=True).demonstrate(task, random.Random(0)) == [("submit", "")]
    with pytest.raises(TaskFailure, match="no solution/solve.sh"):
        ReferenceSolution().demonstrate(load_task(folder(tmp_path, "other")), random.Random(0))


def test_the_archive_of_a_folder_is_the_same_whoever_owns_it_and_whenever_it_was_written(tmp_path):
    first, second = (folder(tmp_path, name) / "tests" for name in ("a", "b"))
    (first / "test.sh").chmod(0o755)
    assert packed(first) != packed(second)
    (second / "test.sh").chmod(0o755)
    assert packed(first) == packed(second)
    with tarfile.open(fileobj=io.BytesIO(packed(first))) as tar:
        assert tar.getnames() == ["test.sh"]
