"""The shipped rewards on real shells and over real HTTP, and what must never become a score."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from klong_rl.cli import load_config
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.types import Verdict
from tests.fake_judge import FakeJudge
from tests.judged import bench, finished, reward
from tests.unit.judging.trees import leaf, node, small

pytestmark = pytest.mark.integration

EXACT, TESTS, RUBRIC = reward("answer.exact"), reward("tests.hidden_tests"), reward("rubric.rubric")


@pytest.mark.parametrize(
    "command, score",
    [("echo 47 > answer", 1), ("printf '47\\r\\n' > answer", 1), ("echo 470 > answer", 0), ("true", 0)],
)
async def test_exact(tmp_path, command, score):
    async with bench(tmp_path, EXACT) as stage:
        assert (await stage.grade(finished(file="answer", expected="47"), command)).verdict.score == score


HIDDEN = {
    "files": {"hidden/check.sh": "test $(cat total) = 5"},
    "tests": {"sum": "sh hidden/check.sh", "clean": "test ! -e junk"},
}


async def test_hidden_tests_run_on_what_was_left(tmp_path):
    async with bench(tmp_path, TESTS) as stage:
        graded = await stage.grade(finished(**HIDDEN), "echo 5 > total; touch junk")
        assert graded.verdict.score == 0.5
        assert graded.verdict.parts == {"sum": 1, "clean": 0, "solved": 0}
        assert graded.verdict.evidence["clean"].startswith("exit code 1") and graded.kept_snapshot == ""
        assert [run.is_fresh for run in stage.record().commands] == [True, True, True]


@pytest.mark.parametrize(
    "trick, clean",
    [
        ("mkdir -p hidden/check.sh/in/the/way", 1),
        ("mkdir hidden; echo 'exit 0' > hidden/check.sh; chmod a-w hidden/check.sh", 1),
        ("ln -s /dev/null hidden", 0),  # nothing can be written there, which is the agent's doing
        ("(while :; do mkdir -p hidden; echo 'exit 0' > hidden/check.sh; done) > /dev/null 2>&1 &", 1),
        ("mkdir b; printf '#!/bin/sh\\nexit 0' > b/sh; chmod +x b/sh; export PATH=$PWD/b:$PATH", 1),
    ],
)
async def test_an_agent_can_not_stand_in_the_way_of_its_hidden_tests(tmp_path, trick, clean):
    async with bench(tmp_path, TESTS) as stage:
        parts = (await stage.grade(finished(**HIDDEN), "echo 4 > total", trick)).verdict.parts
        assert (parts.get("sum", 0), parts.get("clean", 0)) == (0, clean)


async def test_a_test_that_does_not_end_fails(tmp_path):
    async with bench(tmp_path, reward("tests.hidden_tests", timeout_s=0.3)) as stage:
        verdict = (await stage.grade(finished(tests={"loop": "sleep 9", "ok": "true"}))).verdict
        assert verdict.parts == {"loop": 0, "ok": 1, "solved": 0} and "over 0.3 s" in verdict.evidence["loop"]


async def test_composite_is_the_weighted_mean(tmp_path):
    parts = {"answer": {"weight": 1, "reward": EXACT}, "tests": {"weight": 3, "reward": TESTS}}
    async with bench(tmp_path, reward("composite.composite", parts=parts)) as stage:
        episode = finished(file="answer", expected="47", **HIDDEN)
        verdict = (await stage.grade(episode, "echo 47 > answer; touch junk; echo 5 > total")).verdict
        assert verdict.score == pytest.approx((1 + 3 * 0.5) / 4)
        assert verdict.parts["answer"] == 1 and verdict.parts["tests.clean"] == 0 and verdict.parts["solved"] == 0


def says(**scores: int):
    """A judge that gives the leaf NAME scores[NAME], and 0 to others."""

    def answer(messages):
        name = re.search(r"Requirement:\nwhat (\w+) asks for", messages[-1]["content"])[1]
        return f"Looked at {name}.\nScore: {scores.get(name, 0)}"

    return answer


async def test_a_rubric_is_judged_leaf_by_leaf_and_aggregated(tmp_path):
    async with FakeJudge(says(a1=1)) as fake, bench(tmp_path, RUBRIC, fake.url) as stage:
        graded = await stage.grade(
            finished(rubric=small()), "echo 'def train(): ...' > train.py; mkdir .git; echo x > .git/y"
        )
        assert graded.verdict.score == pytest.approx(0.5)
        assert graded.verdict.parts == {
            "Code Development": 1,
            "Code Execution": 0,
            "Result Analysis": 0,
            "rubric": 0.5,
            "solved": 0,
        }
        assert len(fake.asked) == 3 and all("def train(): ..." in each["messages"][1]["content"] for each in fake.asked)
        record = stage.record()
        assert sorted(call.about for call in record.calls) == ["a1", "a2", "b"] and record.model == "m"
        assert {read.path for read in record.reads} == {"train.py"}
        (call,) = [call for call in record.calls if call.about == "a1"]
        assert stage.store.text(call.reply) == "Looked at a1.\nScore: 1"
        assert "what a1 asks for" in stage.store.text(call.request)


async def test_only_the_code_leaves_are_asked_for(tmp_path):
    async with (
        FakeJudge(says(a1=1)) as fake,
        bench(tmp_path, reward("rubric.rubric", only_code=True), fake.url) as stage,
    ):
        assert (await stage.grade(finished(rubric=small()), "echo 1 > a.py")).verdict.score == 1
        assert len(fake.asked) == 1


async def test_a_capped_rubric_takes_shares(tmp_path):
    capped = reward("rubric.rubric", max_depth=0)
    async with FakeJudge(answers=["Score: 0.4"]) as fake, bench(tmp_path, capped, fake.url) as stage:
        assert (await stage.grade(finished(rubric=small()), "echo 1 > a.py")).verdict.score == 0.4


async def test_nothing_left_is_nothing_scored_and_nobody_asked(tmp_path):
    async with FakeJudge(lambda messages: "Score: 1") as fake, bench(tmp_path, RUBRIC, fake.url) as stage:
        assert (await stage.grade(finished(rubric=small()))).verdict.score == 0
        assert fake.came == []


async def test_an_invalid_reply_is_asked_again_and_both_are_kept(tmp_path):
    one = node("root", 1, leaf("a"))
    async with FakeJudge(answers=["I can't say.", "Score: 1"]) as fake, bench(tmp_path, RUBRIC, fake.url) as stage:
        assert (await stage.grade(finished(rubric=one), "echo 1 > a.py")).verdict.score == 1
        assert [bool(call.problem) for call in stage.record().calls] == [True, False]
        again = fake.asked[1]["messages"]
        assert again[-2]["content"] == "I can't say." and "end with one line" in again[-1]["content"]


async def test_a_reply_that_was_cut_off_is_invalid_whatever_it_says(tmp_path):
    one, long = node("root", 1, leaf("a")), "so " * 9000 + "\nScore: 1"
    async with FakeJudge(answers=[long, "Score: 0"]) as fake, bench(tmp_path, RUBRIC, fake.url) as stage:
        assert (await stage.grade(finished(rubric=one), "echo 1 > a.py")).verdict.score == 0
        first, _ = stage.record().calls
        assert "cut off" in first.problem and stage.store.text(first.reply) == long


async def test_a_judge_without_valid_replies_is_our_failure_and_never_a_score(tmp_path):
    answer = says(a1=1)

    def half(messages):
        return answer(messages) if "what a1 asks for" in messages[1]["content"].split("Requirement:")[1][:20] else "?"

    async with FakeJudge(half) as fake, bench(tmp_path, RUBRIC, fake.url) as stage:
        with pytest.raises(InfrastructureFailure, match="2 of 3 leaves are invalid .a2, b.*3 invalid replies"):
            await stage.grade(finished(rubric=small()), "echo 1 > a.py")
        assert stage.records.all() == ([], [])
        n_asked = len(fake.asked)
        fake._answer = answer
        assert (await stage.grade(finished(rubric=small()), "echo 1 > a.py")).verdict.score == pytest.approx(0.5)
        assert len(fake.asked) - n_asked == 2, "valid leaves were kept, invalid ones are asked again"


async def test_a_judge_that_can_not_be_reached_is_our_failure_and_says_what_was_waited_for(tmp_path):
    async with FakeJudge() as away:
        pass
    async with bench(tmp_path, RUBRIC, away.url, wait_s=1.0) as stage:
        with pytest.raises(InfrastructureFailure, match="judge.wait_s=1 for the judge model m at .*can't be reached"):
            await stage.grade(finished(rubric=small()), "echo 1 > a.py")


async def test_a_queue_at_the_judge_does_not_use_up_the_grading_time(tmp_path):
    async with FakeJudge(takes_s=1.0) as fake, bench(tmp_path, RUBRIC, fake.url, grading_timeout_s=0.9) as stage:
        assert (await stage.grade(finished(rubric=small()), "echo 1 > a.py")).verdict.score >= 0


async def test_a_grading_that_takes_too_long_is_our_failure(tmp_path):
    async with bench(tmp_path, TESTS, grading_timeout_s=0.5) as stage:
        with pytest.raises(InfrastructureFailure, match="judge.grading_timeout_s=0.5"):
            await stage.grade(finished(tests={"slow": "sleep 9"}))


@pytest.mark.parametrize("secret", [{}, {"rubric": node("root")}, {"rubric": "/nowhere.json"}, {"rubric": 7}])
async def test_a_task_without_a_rubric_that_works_is_broken_and_not_scored(tmp_path, secret):
    async with bench(tmp_path, RUBRIC) as stage:
        with pytest.raises(TaskFailure, match="task t can't be judged by its rubric"):
            await stage.grade(finished(**secret), "echo 1 > a.py")


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


async def test_a_reward_of_ones_own_is_a_short_function_and_a_line_of_config(tmp_path, monkeypatch):
    source = (EXAMPLES / "shortest_answer.py").read_text()
    (function,) = [each for each in ast.parse(source).body if isinstance(each, ast.AsyncFunctionDef)]
    assert function.end_lineno - function.lineno + 1 <= 15
    monkeypatch.syspath_prepend(str(EXAMPLES))
    config, _ = load_config([f"reward._target_=shortest_answer.{function.name}"])
    async with bench(tmp_path, config.reward) as stage:
        assert (await stage.grade(finished(), "printf 4711 > answer")).verdict.score == 0.25
        assert (await stage.grade(finished())).verdict.score == 0


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.parent.glob("conf/reward/*.yaml")))
async def test_every_reward_is_chosen_by_its_name(tmp_path, name):
    endpoint = ["judge.endpoint.url=http://judge/v1", "judge.endpoint.model=m"]
    endpoint = endpoint if name in ("rubric", "paperbench", "paperbench_code") else []
    config, _ = load_config([f"reward={name}", *endpoint])
    async with bench(tmp_path, config.reward) as stage:
        with pytest.raises(TaskFailure, match="task t "):
            await stage.grade(finished())


def test_a_rubric_needs_an_endpoint_and_says_so():
    with pytest.raises(UserError, match="judge.endpoint.url"):
        load_config(["reward=rubric"])


@pytest.mark.parametrize(
    "override",
    [
        "judge.endpoint.url=host:80",
        "judge.endpoint.requests_per_s=0",
        "judge.endpoint.concurrent=0",
        "judge.endpoint.context_tokens=1000",
        "judge.wait_s=0",
    ],
)
def test_settings_of_judging_that_can_not_work_are_refused(override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        load_config([override])


async def test_a_score_that_is_none_is_the_tasks_failure(tmp_path):
    async with bench(tmp_path, EXACT) as stage:
        stage.grader._reward = out_of_range
        with pytest.raises(TaskFailure, match="a score is in"):
            await stage.grade(finished())


async def out_of_range(episode, sandbox, judge):
    return Verdict(score=1.5)
