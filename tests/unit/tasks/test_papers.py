"""PaperBench-format folders as tasks."""

import json
import random

import pytest

from klong_rl.errors import UserError
from klong_rl.judging.rubric import CODE, RESULTS
from klong_rl.tasks.papers import PaperTasks, ScriptedReproduction, load_task, title, written
from klong_rl.types import Limits


def folder(path, name: str, rubric: object = None):
    made = path / name
    (made / "assets").mkdir(parents=True)
    (made / "paper.md").write_text("# Paper")
    (made / "addendum.md").write_text("More.")
    (made / "blacklist.txt").write_text("https://github.com/a/b\nnone\n")
    (made / "assets" / "f.png").write_bytes(b"png")
    (made / "config.yaml").write_text(f"id: {name}\ntitle: 'Title: of {name}'\n")
    leaf = {"id": "l", "requirements": "x", "weight": 1, "sub_tasks": [], "task_category": CODE}
    (made / "rubric.json").write_text(json.dumps(rubric or leaf))
    return made


def test_a_folder_becomes_a_task_whose_rubric_the_agent_never_sees(tmp_path):
    task = load_task(folder(tmp_path, "p"), image="i", instruction="do", limits=Limits())
    assert task.id == "papers/p" and title(tmp_path / "p") == "Title: of p"
    assert task.files["paper/paper.md"] == b"# Paper" and task.files["paper/assets/f.png"] == b"png"
    assert task.secret["folder"] == "submission" and task.reading == ("paper/paper.md", "paper/addendum.md")
    assert not any("rubric" in name for name in task.files)
    assert task.secret["paper"] == "# Paper\n\nMore."


def test_no_task_is_for_training_and_for_evaluation(tmp_path):
    for name in "abcdefghij":
        folder(tmp_path, name)
    family = PaperTasks(str(tmp_path), held_out_share=0.3)
    train, held = ({make(1, i).id for i in range(40)} for make in (family.train, family.held_out))
    assert len(train) == 7 and len(held) == 3 and not train & held and len(family.all) == 10
    assert {PaperTasks(str(tmp_path), seed=5, held_out_share=0.3).held_out(1, i).id for i in range(9)} == held
    assert [family.train(1, i).id for i in range(7)] != sorted(family.train(1, i).id for i in range(7))
    none = PaperTasks(str(tmp_path), held_out_share=0)
    assert {none.train(1, i).id for i in range(10)} == {none.held_out(1, i).id for i in range(10)}
    named = PaperTasks(str(tmp_path), held_out_names=["b"])
    assert {named.held_out(1, i).id for i in range(3)} == {"papers/b"}


def test_a_network_never_reaches_what_is_blacklisted(tmp_path):
    folder(tmp_path, "a"), folder(tmp_path, "b")
    network = PaperTasks(str(tmp_path), network=["*"]).train(1, 0).limits.network
    assert network.allow == ("*",) and network.block == ("https://github.com/a/b",)
    assert PaperTasks(str(tmp_path)).train(1, 0).limits.network is None


def test_bad_folders_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="has no task"):
        PaperTasks(str(tmp_path)).train(1, 0)
    folder(tmp_path, "a")
    with pytest.raises(UserError, match="add another"):
        PaperTasks(str(tmp_path)).train(1, 0)
    with pytest.raises(UserError, match="are no tasks"):
        PaperTasks(str(tmp_path), held_out_names=["x"]).train(1, 0)
    folder(tmp_path, "b", rubric={"id": "x"})
    with pytest.raises(UserError, match="b/rubric.json can't be used: .*lacks requirements"):
        PaperTasks(str(tmp_path)).train(1, 0)
    (tmp_path / "b" / "paper.md").unlink()
    with pytest.raises(UserError, match="b has no paper.md"):
        PaperTasks(str(tmp_path)).train(1, 0)


def test_there_is_one_difficulty(tmp_path):
    folder(tmp_path, "a"), folder(tmp_path, "b")
    with pytest.raises(UserError, match="difficulty 1"):
        PaperTasks(str(tmp_path)).train(2, 0)


def test_paperbench_trees_with_their_own_fields_are_read(tmp_path):
    leaf = {"id": "l", "requirements": "x", "weight": 1, "sub_tasks": [], "task_category": RESULTS}
    folder(tmp_path, "a", rubric=leaf | {"finegrained_task_category": "Evaluation"})
    assert (
        load_task(tmp_path / "a", image="i", instruction="", limits=Limits()).secret["rubric"].endswith("rubric.json")
    )


def test_the_scripted_reproduction_writes_the_code_through_a_shell(tmp_path):
    import subprocess

    text = "print 'a' \\n $x `y`\n\"two\"\n"
    subprocess.run(["sh", "-ec", "\n".join(written("f.txt", text))], cwd=tmp_path, check=True)
    assert (tmp_path / "f.txt").read_text() == text
    task = load_task(folder(tmp_path / "tasks", "square-root-steps"), image="i", instruction="", limits=Limits())
    turns = ScriptedReproduction("examples/papers", forgets=0.0).demonstrate(task, random.Random(0))
    assert turns[-1] == ("submit", "") and any("newton.awk" in command for command, _ in turns)
    with pytest.raises(UserError, match="has no p/code"):
        ScriptedReproduction("examples/papers").demonstrate(
            load_task(folder(tmp_path / "tasks", "p"), image="i", instruction="", limits=Limits()), random.Random(0)
        )
