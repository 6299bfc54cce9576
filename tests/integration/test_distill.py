"""`python -m klong_rl.distill`: teachers that are good, bad, slow and silent, and what is left to learn from."""

import json
import signal
import time
from pathlib import Path

import pytest

from klong_rl.distill import Distillation, load_distill_config
from klong_rl.distillation.journal import Journal
from klong_rl.fine_tuning.files import DataSet, open_files
from klong_rl.tasks.relay import RelayTasks
from tests.fake_judge import FakeJudge
from tests.launched import LaunchedRun

pytestmark = pytest.mark.integration

BARE = ("sandbox.kind=process", "sandbox.allow_unisolated=true", "count=1", "difficulty=2", "max_turns=8")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("klong_rl.judging.lane.FIRST_DELAY_S", 0.05)


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


async def distill(out: Path, *settings: str) -> list[dict]:
    """The rows of trajectories.jsonl after one run."""
    config = load_distill_config([f"out={out}", *BARE, *settings])
    await Distillation(config, out).run()
    path = out / "trajectories.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def teacher(fake: FakeJudge) -> tuple[str, ...]:
    return ("teacher=openai", f"teacher.endpoint.url={fake.url}", "teacher.endpoint.model=m")


def solves(messages: list[dict[str, str]]) -> str:
    """The commands that solve the relay task, by what was observed; each with a report of its progress."""
    task = RelayTasks().train(2, 0)
    chain, code = task.secret["chain"], task.secret["expected"]
    turn = sum(message["role"] == "assistant" for message in messages)
    return [f"cat {chain[0]}", f"# progress 50%: half\nprintf {code} > answer", "submit"][min(turn, 2)]


async def test_the_best_of_several_careless_attempts_become_data_that_sft_reads(out):
    rows = await distill(out, "count=3", "samples=4", "keep=2", "enough=2", "at_once=4")
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 12 and {row["id"] for row in rows} == {row["id"] for row in scores if row["kept"]}
    for task in {row["task"] for row in scores}:
        of_task = sorted((row["score"] for row in scores if row["task"] == task), reverse=True)
        kept = sorted((row["score"] for row in rows if row["task"] == task), reverse=True)
        assert kept == [score for score in of_task[:2] if score >= 0.5]
    assert DataSet(open_files(str(out / "trajectories.jsonl"), "data"), 0.5).check(lambda _: None) == len(rows) > 0
    before = (out / "trajectories.jsonl").read_text()
    await distill(out, "count=3", "samples=4", "keep=2", "enough=2", "at_once=4")
    assert (out / "trajectories.jsonl").read_text() == before


async def test_a_model_works_through_an_endpoint_and_its_thinking_is_kept_apart(out):
    async with FakeJudge(solves, answers=[429, 500]) as fake:
        anthropic = ("teacher=anthropic", f"teacher.endpoint.url={fake.url}", "teacher.endpoint.model=m")
        (row,) = await distill(out, *anthropic)
        assert len(fake.asked) == 3
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert row["score"] == 1.0 and row["thinking"] == ["Hm."] * 3 and "Hm." not in json.dumps(row["messages"])
    assert row["progress"] == [{"turn": 1, "percent": 50, "note": "half"}] and row["usage"]["requests"] == 3


async def test_who_went_away_in_the_middle_pays_for_nothing_twice(out):
    async with FakeJudge(solves) as fake:
        fake.answers = [solves([]), 404]
        assert await distill(out, *teacher(fake)) == [], "the attempt fails: the endpoint refuses its second request"
        (row,) = await distill(out, *teacher(fake))
        assert row["score"] == 1.0 and len(fake.asked) == 3, "the first answer wasn't asked again"
        (journal,) = [Journal(path) for path in (out / "attempts").glob("*.jsonl")]
        assert len(journal.intended) == len(journal.turned) == 3, "nor was its command run again"
        await distill(out, *teacher(fake))
        assert len(fake.asked) == 3


async def test_an_attempt_that_failed_goes_on_from_a_snapshot_with_what_it_did(out):
    """The endpoint refuses the second request: the run keeps a snapshot and leaves no sandbox; the next one goes on."""
    commands = ["echo 7 > kept", "cat kept > copy; cat copy", "submit"]
    async with FakeJudge(lambda said: commands[sum(each["role"] == "assistant" for each in said)]) as fake:
        fake.answers = [commands[0], 404]
        await distill(out, *teacher(fake), "min_score=0")
        (journal,) = [Journal(path) for path in (out / "attempts").glob("*.jsonl")]
        assert journal.parked and len(journal.turned) == 1
        (row,) = await distill(out, *teacher(fake), "min_score=0")
    assert row["messages"][5]["content"].strip() == "7", "the file that the first run wrote"


async def test_a_teacher_that_never_answers_or_refuses_leaves_the_others_alone(out):
    async with FakeJudge() as fake:
        fake.opened.clear()
        assert await distill(out, *teacher(fake), "teacher.wait_s=0.3") == []
        assert len(fake.came) == 1
    refusal = {"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}
    async with FakeJudge(solves, answers=[refusal] * 3) as fake:
        rows = await distill(out, *teacher(fake), "samples=2", "at_once=1")
        assert [row["id"][-1] for row in rows] == ["1"]
        (journal,) = [Journal(path) for path in (out / "attempts").glob("*-0.jsonl")]
        assert journal.ended.kind == "refused" and "would not act" in journal.ended.detail


async def test_a_context_that_the_endpoint_finds_too_long_is_cut_by_the_context_rule(out):
    shown: list[int] = []

    def answer(messages: list[dict[str, str]]) -> str:
        shown.append(len(messages))
        return "seq 1 400" if len(shown) < 6 else "submit"

    small = (
        "teacher.endpoint.context_tokens=3000",
        "teacher.endpoint.reply_tokens=100",
        "agent.observation_tokens=400",
    )
    too_long = (400, "This model's maximum context length is 1000 tokens")
    async with FakeJudge(answer, answers=[too_long, too_long]) as fake:
        (row,) = await distill(out, *teacher(fake), *small, "min_score=0")
    assert max(shown) < 2 + 2 * 5 and row["turns"] == 6 and len(row["messages"]) == 2 + 2 * 6 - 1, (shown, row["turns"])


async def test_submit_is_refused_before_its_time(out):
    async with FakeJudge(lambda messages: "sleep 0.4" if len(messages) % 4 == 2 else "submit") as fake:
        (row,) = await distill(
            out,
            *teacher(fake),
            "agent.rules.submit_after=0.5",
            "timeout_s=1.4",
            "min_score=0",
            "agent.command_timeout_s=9",
        )
    assert any("[not submitted:" in message["content"] for message in row["messages"])
    assert row["outcome"] in ("submitted", "timeout")


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_in_its_own_sandbox(tmp_path):
    """SIGKILL in the middle of a command: the next run adopts the sandbox and ends with the same data."""
    out = tmp_path / "out"
    settings = (f"out={out}", *BARE, "count=4", "samples=2", "at_once=8")
    run = LaunchedRun(settings, tmp_path / "log-1", module="klong_rl.distill").start()
    until = time.monotonic() + 120
    while not list(out.glob("attempts/*.jsonl")):
        assert time.monotonic() < until and run.process.poll() is None, run.output()
        time.sleep(0.02)
    run.signal_group(signal.SIGKILL)
    run.process.wait(20)
    again = LaunchedRun(settings, tmp_path / "log-2", module="klong_rl.distill").start()
    assert again.finish(200) == 0, again.output()
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert 4 <= len(scores) <= 8
