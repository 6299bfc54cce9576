"""`python -m klong_rl.evaluate`: what is run once, what again, what has no score, and what is left to look at."""

import json
from pathlib import Path

import docker
import numpy as np
import pytest
from hydra.utils import instantiate

from actors.agent import Agent
from actors.evaluated import CheckpointPolicy
from actors.scripted import ScriptedEngine
from klong_rl import evaluate
from klong_rl.chat import ChatFormat
from klong_rl.cold_start import corpus
from klong_rl.config import AgentConfig
from klong_rl.distillation.attempts import spec_of
from klong_rl.distillation.journal import Journal
from klong_rl.errors import UserError
from klong_rl.evaluate import Evaluation, load_evaluate_config
from klong_rl.launch import run_id
from klong_rl.models.nano import train_tokenizer
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks
from klong_rl.types import Turn
from klong_rl.windows import ContextRule
from klong_rl.wire import decode
from sandboxes.docker import DockerSandboxes
from sandboxes.image import find
from sandboxes.process import ProcessSandboxes
from tests.fake_judge import FakeJudge

pytestmark = pytest.mark.integration

BARE = ("sandbox.kind=process", "sandbox.allow_unisolated=true", "suite.difficulties=[2]", "suite.count=2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("klong_rl.judging.lane.FIRST_DELAY_S", 0.05)


def parts_of(out: Path, *settings: str) -> Evaluation:
    out.mkdir(exist_ok=True)
    config = load_evaluate_config([f"out={out}", *settings])
    suite, family = instantiate(config.suite), instantiate(config.tasks)
    return Evaluation(config, out, suite, evaluate.chosen(suite.entries(family), config.only), suite.refused(family))


async def run(out: Path, *settings: str) -> tuple[int, dict]:
    """The exit code of one run, and what results.json holds then."""
    code = await parts_of(out, *BARE, *settings).run()
    return code, json.loads((out / "results.json").read_text())


def solves(messages: list[dict[str, str]]) -> str:
    """Right for the first held-out task, wrong for the second; it only knows the code."""
    task = RelayTasks().held_out(2, 0)
    if any(message["role"] == "assistant" for message in messages):
        return "submit"
    right = task.instruction == messages[1]["content"]
    return f"printf {task.secret['expected'] if right else 'x'} > answer"


async def test_a_finished_episode_is_never_run_again_and_what_failed_is_listed_and_tried_again(tmp_path):
    async with FakeJudge(solves) as fake:
        policy = ("policy=openai", f"policy.endpoint.url={fake.url}", "policy.endpoint.model=m", "at_once=1")
        task = RelayTasks().held_out(2, 0)
        fake.answers = [f"printf {task.secret['expected']} > answer", "submit", "printf x > answer", 404]
        code, results = await run(tmp_path / "out", *policy)
        lost = [each for each in results["episodes"] if each["score"] is None]
        assert code == 1 and len(lost) == 1 and lost[0]["blame"] == "infrastructure" and "404" in lost[0]["detail"]
        assert results["lines"][0]["unscored"] == 1 and results["lines"][0]["tasks"] == 1
        asked = len(fake.asked)
        code, results = await run(tmp_path / "out", *policy)
        assert code == 0 and [each["score"] for each in results["episodes"]] == [1.0, 0.0]
        assert asked == 3 and len(fake.asked) == 4, "the first answer of the lost episode wasn't asked again"
        code, again = await run(tmp_path / "out", *policy)
        assert again["episodes"] == results["episodes"] and len(fake.asked) == 4
    [line] = results["lines"]
    assert line["score"] == [0.5, 0.0, 1.0] and line["turns"] == 2.0 and line["usage"]["requests"] == 4
    page = (tmp_path / "out" / "report.html").read_text()
    assert "printf" in page and "report.html" not in page


def test_another_policy_is_refused_in_the_same_folder_and_so_is_one_that_is_none(tmp_path):
    settings = [f"out={tmp_path}", *BARE, "check=false", "suite.count=1"]
    assert evaluate.main(settings) == 0
    with pytest.raises(UserError, match="suite.count=1, this launch has suite.count=2"):
        evaluate.main([*settings[:-1], "suite.count=2"])
    with pytest.raises(UserError, match="policy.path= is missing"):
        evaluate.main([f"out={tmp_path}", "policy=checkpoint"])
    with pytest.raises(UserError, match=r"only=relay/x matches no task of the suite; its ids are relay/held-out/2/0/0"):
        evaluate.main([*settings, "only=[relay/x]"])


def test_a_run_s_own_scaffold_is_taken_but_for_what_is_given(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    saved = {"agent": {"action_tokens": 9, "rules": {"submit_after": 0.25}}, "window": {"max_tokens": 77}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    mine = ["policy=checkpoint", f"policy.path={tmp_path}", "out=x", "window.max_tokens=99"]
    config = load_evaluate_config(mine)
    assert (config.agent.action_tokens, config.agent.rules.submit_after, config.window.max_tokens) == (9, 0.25, 99)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        evaluate.model_folder(tmp_path)


async def test_a_checkpoint_goes_on_in_the_context_that_was_sampled(tmp_path):
    """Its engine fails in the middle; another goes on from the file, tokens and all, and runs no command twice."""
    config = AgentConfig(system="You have a shell, one command a turn. Type submit when done.")
    train_tokenizer(corpus(RelayTasks(), RelayDemonstrator(), [2], config.system), 512).save_pretrained(tmp_path / "t")
    chat, rule = ChatFormat(tmp_path / "t"), ContextRule(max_tokens=400, overlap_tokens=24, action_tokens=32)
    spec = spec_of(RelayTasks().train(2, 0), 0, samples=1, seed=0, timeout_s=30.0, max_turns=8)
    factory = ProcessSandboxes("test-evaluate", root=str(tmp_path / "p"), allow_unisolated=True)
    sandbox, path = await factory.create("e", 1, "any", spec.task.limits), tmp_path / "e.jsonl"
    end = chat.end_token
    try:
        first = ScriptedEngine(chat, [f"echo a >> notes{end}"])
        with pytest.raises(IndexError):
            await CheckpointPolicy("one", Agent(config, rule, chat, first), first).run(spec, Journal(path), sandbox)
        second = ScriptedEngine(chat, [f"cat notes{end}", f"submit{end}"])
        journal = Journal(path)
        await CheckpointPolicy("two", Agent(config, rule, chat, second), second).run(spec, journal, sandbox)
    finally:
        await sandbox.close()
        await factory.close()
    assert [each.command for each in journal.intended] == ["echo a >> notes", "cat notes", "submit"]
    assert journal.ended.kind == "submitted" and journal.turned[1].observation.count("a") == 1
    turn = decode(journal.turned[0].turn, Turn)
    known_T = np.concatenate([chat.prefix(config.system, spec.task.instruction), turn.action_A, turn.observation_O])
    assert np.array_equal(second.contexts[0], known_T)
    assert journal.usage.requests == 3 and journal.intended[1].usage.prompt_tokens == len(known_T)


PAPER = {
    "paper.md": "# A paper",
    "code/train.py": "print(7)\n",
    # What it prints tells the agent's container, which has the paper, from one that has the submission alone.
    "code/reproduce.sh": "[ -e ../paper ] && echo beside the paper || echo alone\npython3 train.py || true\n",
}


def leaf(name: str, requirements: str, category: str) -> dict:
    return {"id": name, "requirements": requirements, "weight": 1, "sub_tasks": [], "task_category": category}


async def test_a_paper_is_reproduced_where_nothing_else_of_the_agent_is_and_judged_there(tmp_path):
    rubric = leaf("root", "The paper is reproduced.", None)
    rubric["sub_tasks"] = [
        leaf("code", "`train.py` has `print(7)`.", "Code Development"),
        leaf("run", "`reproduce.log` says `alone`.", "Code Execution"),
        leaf("result", "`reproduce.log` says `beside the paper`.", "Result Analysis"),
    ]
    for path, text in (PAPER | {"rubric.json": json.dumps(rubric)}).items():
        (tmp_path / "p/a" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p/a" / path).write_text(text)
    bare = ("sandbox.kind=process", "sandbox.allow_unisolated=true", f"tasks.path={tmp_path / 'p'}")
    judge = ("judge.endpoint.url=scripted://models", "judge.endpoint.model=scripted-judge")
    typed = (f"cold_start.demonstrator.papers={tmp_path / 'p'}", "cold_start.demonstrator.forgets=0")
    for suite, scores in (("paperbench", [1, 1, 0]), ("paperbench_code", [1])):
        assert await parts_of(tmp_path / suite, f"suite={suite}", *bare, *judge, *typed).run() == 0
        [output] = [json.loads(path.read_text()) for path in (tmp_path / suite / "paperbench").glob("*.json")]
        tree = output["graded_task_tree"]
        assert [node["score"] for node in tree["sub_tasks"]] == scores and output["num_leaf_nodes"] == len(scores)
        assert output["score"] == tree["score"] == sum(scores) / len(scores) and tree["sub_tasks"][0]["explanation"]
        [episode] = json.loads((tmp_path / suite / "results.json").read_text())["episodes"]
        assert episode["score"] == output["score"] and ("reproduced" in episode["parts"]) == (suite == "paperbench")


HARBOR = {
    "task.toml": "[environment]\nallow_internet = false\nmemory_mb = 128\n[verifier]\ntimeout_sec = 20.0\n",
    "instruction.md": "Write 42 to answer.",
    "environment/Dockerfile": "FROM klong-sandbox\nUSER root\nWORKDIR /srv/app\nENV GREETING=hello\n",
    "tests/test.sh": "cmp answer /tests/right && [ $GREETING = hello ] && grep -q 31415 /proc/$(cat /srv/pid)/cmdline\n"
    "[ $? = 0 ] && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt\n",
    "tests/right": "42\n",
    # As root it changes what belongs to others; and it leaves what its tests must not be taken in by.
    "solution/solve.sh": "echo 42 > answer; touch /etc/made; chown 1000 /etc/made; sleep 31415 & echo $! > /srv/pid\n"
    "mkdir -p /logs/verifier; echo 0.5 > /logs/verifier/reward.json\n",
}


def harbor_task(folder: Path, name: str, **changed: str) -> None:
    for path, text in (HARBOR | changed).items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text("#!/bin/sh\n" * path.endswith(".sh") + text)


@pytest.fixture
async def no_images_left(tmp_path):
    """What a run keeps of episodes without a score, for the next one; and the image of the task."""
    yield
    for out in ("oracle", "empty", "fresh"):
        factory = DockerSandboxes(f"evaluate-{run_id(tmp_path / out)}")
        await factory.reap(keep=set())
        await factory.close()
    api = docker.APIClient()
    if tag := find(api, tmp_path / "tasks/good/environment"):
        api.remove_image(tag, force=True)
    api.close()


async def test_a_harbor_task_is_solved_by_its_reference_and_not_by_nothing(tmp_path, no_images_left):
    harbor_task(tmp_path / "tasks", "good")
    harbor_task(tmp_path / "tasks", "silent", **{"tests/test.sh": "true\n"})
    harbor_task(tmp_path / "tasks", "broken", **{"environment/Dockerfile": "FROM klong-sandbox\nRUN exit 3\n"})
    suite = ("suite=harbor", f"tasks.path={tmp_path / 'tasks'}", "sandbox.egress.via=none", "at_once=2")
    await parts_of(tmp_path / "oracle", *suite).run()
    found = {each["task"]: each for each in json.loads((tmp_path / "oracle/results.json").read_text())["episodes"]}
    assert found["harbor/good"]["score"] == 1.0, found["harbor/good"]
    assert found["harbor/silent"]["blame"] == "task" and "left no reward" in found["harbor/silent"]["detail"]
    assert found["harbor/broken"]["blame"] == "task" and "non-zero code: 3" in found["harbor/broken"]["detail"]
    nothing = ("cold_start.demonstrator.empty=true", "only=[harbor/good]")
    await parts_of(tmp_path / "empty", *suite, *nothing).run()
    [episode] = json.loads((tmp_path / "empty/results.json").read_text())["episodes"]
    assert episode["score"] == 0.0 and episode["outcome"] == "submitted"
    # In a container of the files alone, the process that the tests ask for is not there.
    await parts_of(tmp_path / "fresh", *suite, "only=[harbor/good]", "reward.fresh=true").run()
    [episode] = json.loads((tmp_path / "fresh/results.json").read_text())["episodes"]
    assert episode["score"] == 0.0
