"""`python -m klong_rl.factory` on real files, sandboxes and endpoints, good and bad ones together."""

import json
import shutil
from pathlib import Path

import pytest

from klong_rl.factory import Factory, load_factory_config
from klong_rl.judging.rubric import load
from klong_rl.papers.author import Author
from klong_rl.papers.stages import Sheet
from klong_rl.tasks.papers import PaperTasks
from tests.fake_judge import CUT, FakeJudge
from tests.small_papers import markdown, pdf

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples" / "papers"
SCRIPTED = ("evaluator.url=scripted://models", "evaluator.model=scripted-evaluator")
JUDGE = ("judge.endpoint.url=scripted://models", "judge.endpoint.model=scripted-judge")
BARE = ("sandbox.kind=process", "sandbox.allow_unisolated=true")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("klong_rl.judging.lane.FIRST_DELAY_S", 0.05)


@pytest.fixture
def papers(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


async def make(papers: Path, *settings: str) -> dict[str, dict]:
    """One run of the factory: its outcomes by name, as OUT/report.json has them."""
    out = papers.parent / "out"
    out.mkdir(exist_ok=True)
    config = load_factory_config([f"papers={papers}", f"out={out}", *SCRIPTED, *JUDGE, *BARE, *settings])
    await Factory(config, out).run()
    return {row["name"]: row for row in json.loads((out / "report.json").read_text())["papers"]}


def tasks(papers: Path) -> set[str]:
    return {path.parent.name for path in (papers.parent / "out" / "tasks").glob("*/rubric.json")}


async def test_papers_become_tasks_and_a_second_run_asks_nothing(papers, monkeypatch):
    shutil.copytree(EXAMPLES, papers, dirs_exist_ok=True)
    found = await make(papers)
    assert {name: row["state"] for name, row in found.items()} == {"decaying-mean": "ok", "square-root-steps": "ok"}
    assert all(row["scores"] == {"empty": 0.0, "reference": 1.0} for row in found.values())
    assert all(row["usage"]["prompt_tokens"] > 0 for row in found.values())

    folder = papers.parent / "out" / "tasks" / "decaying-mean"
    assert "github.com/klong-rl-examples/decaying-mean" in (folder / "blacklist.txt").read_text()
    assert (folder / "assets" / "lag.png").exists()
    text = (folder / "rubric.json").read_text()
    assert len(load(text).leaves) == 6 and "spirit of the paper" not in text, "the critic had the vague leaf removed"
    assert PaperTasks(str(folder.parent)).train(1, 0).secret["folder"] == "submission"

    async def never(*_, **__):
        raise AssertionError("a second run asked the evaluator")

    monkeypatch.setattr(Author, "_ask", never)
    assert await make(papers) == found


async def test_bad_files_are_a_line_each_and_hurt_nobody(papers):
    (papers / "good.md").write_text(markdown("A Good Paper", 1))
    (papers / "zero.pdf").write_bytes(b"")
    pdf(papers / "locked.pdf", password="secret")
    pdf(papers / "scan.pdf", scan=True)
    pdf(papers / "long.pdf", pages=600)
    (papers / "broken.tar.gz").write_bytes(b"no archive")
    (papers / "empty.md").write_text(" \n")
    (papers / "again.md").write_text(markdown("Again", 1))
    (papers / "notes.docx").write_bytes(b"?")
    (papers / "leak.md").write_text(markdown("SAPG: Split and Aggregate Policy Gradients", 2))
    (papers / "short.md").write_text("# Short\n\n## Abstract\n\nToo short.\n")
    found = await make(papers)
    reasons = {name: row["reason"] for name, row in found.items() if row["state"] == "rejected"}
    told = {
        "zero": "zero bytes",
        "locked": "encrypted",
        "scan": "OCR",
        "long": "600 pages",
        "broken": "not an archive",
        "empty": "no text",
        "good": "duplicate",  # `again` comes first by name
        "notes-docx": "is no paper",
        "leak": "contamination",
        "short": "quality",
    }
    assert {name: told[name] in reason for name, reason in reasons.items()} == dict.fromkeys(told, True), reasons
    assert tasks(papers) == {"again"} and found["again"]["scores"] == {"empty": 0.0, "reference": None}


async def test_a_task_that_can_not_be_loaded_and_a_file_that_can_not_be_read_hurt_nobody(papers, monkeypatch):
    monkeypatch.setattr("klong_rl.tasks.papers.MOST_ASSET_BYTES", 1)
    shutil.copytree(EXAMPLES / "decaying-mean", papers / "decaying-mean")
    (papers / "good.md").write_text(markdown("A Good Paper", 1))
    (papers / "gone.md").symlink_to(papers / "nowhere")
    (papers / "loop").symlink_to(papers / "loop")
    found = await make(papers)
    assert "assets has" in found["decaying-mean"]["reason"] and tasks(papers) == {"good"}
    assert found["gone"]["state"] in ("rejected", "failed")


async def test_an_evaluation_folder_of_the_users_is_kept_out(papers, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    (held / "theirs.md").write_text(markdown("Held", 5))
    text = markdown("Renamed", 5)
    (papers / "renamed.md").write_text(text)
    (papers / "clean.md").write_text(markdown("Clean", 6))
    found = await make(papers, f"evaluation={held}")
    assert "evaluation paper 'Held'" in found["renamed"]["reason"] and tasks(papers) == {"clean"}


async def test_a_rubric_that_never_validates_is_refused_and_asked_no_more(papers):
    (papers / "a.md").write_text(markdown("A", 1))
    async with FakeJudge(lambda _: '{"addendum": "", "nodes": []}') as fake:
        for _ in range(2):
            found = await make(papers, f"evaluator.url={fake.url}")
            assert found["a"]["reason"].startswith("rubric: no valid answer") and tasks(papers) == set()
            assert "0 nodes with an empty parent" in found["a"]["reason"]
        assert len(fake.asked) == 3, "rubric.attempts, and none in the second run"
        assert "nodes with an empty parent" in fake.asked[1]["messages"][-1]["content"], "it was told what is wrong"


async def test_an_endpoint_that_never_answers_costs_its_paper_a_run_and_nothing_else(papers):
    (papers / "a.md").write_text(markdown("A", 1))
    async with FakeJudge() as fake:
        fake.opened.clear()
        found = await make(papers, f"evaluator.url={fake.url}", "wait_s=0.3")
        assert found["a"]["state"] == "failed" and "within wait_s=0.3" in found["a"]["reason"]
    found = await make(papers)
    assert found["a"]["state"] == "ok", "the next run tries again"


async def test_troubles_on_the_way_to_a_good_answer_are_got_over(papers):
    """No constrained decoding, 429, 500, a cut stream, no JSON, a refusal; then what the scripted evaluator says."""
    from klong_rl.scripted.evaluator import scripted_evaluator

    (papers / "a.md").write_text(markdown("A", 1))
    refusal = {"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}
    answers = [429, 500, CUT, {"nonsense": 1}, "I won't write JSON.", refusal]
    async with FakeJudge(
        lambda messages: scripted_evaluator({"messages": messages}), answers=answers, takes_schema=False
    ) as fake:
        found = await make(papers, f"evaluator.url={fake.url}", "rubric.attempts=5")
        assert found["a"]["state"] == "ok", found
        assert not any("response_format" in body for body in fake.asked)


async def test_rubrics_that_the_trial_exposes_make_no_task(papers):
    shutil.copytree(EXAMPLES / "square-root-steps", papers / "square-root-steps")
    async with FakeJudge(lambda _: "Score: 1") as generous:
        found = await make(papers, f"judge.endpoint.url={generous.url}", "judge.endpoint.model=generous")
    assert "a submission with nothing in it scores 1.000" in found["square-root-steps"]["reason"]
    (papers / "square-root-steps" / "code" / "newton.awk").write_text("{ print 1 }")
    (papers / "square-root-steps" / "code" / "reproduce.sh").write_text("exit 1")
    found = await make(papers)
    assert "the paper's own code scores" in found["square-root-steps"]["reason"] and tasks(papers) == set()


async def test_a_person_accepts_or_sends_back_a_draft(papers, monkeypatch):
    (papers / "a.md").write_text(markdown("<b>&A", 1))
    found = await make(papers, "review=true")
    assert found["a"]["state"] == "waits for review" and tasks(papers) == set()
    page = (papers.parent / "out" / "review" / "a.html").read_text()
    assert "&lt;b&gt;&amp;A" in page and "<b>" not in page and "<script" not in page

    asked = []
    revise = Author.revise

    async def noted(self, subject, draft, problems, spending):
        asked.append([problem.problem for problem in problems])
        made = await revise(self, subject, draft, problems, spending)
        made.addendum += " As a person asked."
        return made

    monkeypatch.setattr(Author, "revise", noted)
    found = await make(papers, "review=true", "send_back=[a]", "note='Tell the seed.'")
    assert found["a"]["state"] == "waits for review" and asked == [["Tell the seed."]]
    found = await make(papers, "review=true", "accept=[a]")
    assert found["a"]["state"] == "ok" and tasks(papers) == {"a"} and len(asked) == 1
    addendum = papers.parent / "out" / "tasks" / "a" / "addendum.md"
    assert "As a person asked." in addendum.read_text()


async def test_identifiers_are_fetched_where_there_is_a_network(papers):
    from aiohttp import web

    async def source(request):
        if request.match_info["id"] != "2501.00001":
            return web.Response(status=404)
        return web.Response(body=(papers.parent / "paper.pdf").read_bytes())

    pdf(papers.parent / "paper.pdf", pages=6)
    app = web.Application()
    app.router.add_get("/e-print/{id}", source)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    (papers / "identifiers.txt").write_text("2501.00001  # there\n2501.00002\nno identifier\n")
    found = await make(papers, f"arxiv_url={url}")
    await runner.cleanup()
    assert found["arxiv-2501-00001"]["state"] == "ok", found
    assert "has no paper 2501.00002" in found["2501-00002"]["reason"]
    assert "is no arXiv identifier" in found["no-identifier"]["reason"]
    found = await make(papers, f"arxiv_url={url}")
    assert found["arxiv-2501-00001"]["state"] == "ok" and found["2501-00002"]["state"] == "failed"


async def test_stages_are_files_that_one_can_open(papers):
    (papers / "a.md").write_text(markdown("A", 1))
    await make(papers)
    sheet = Sheet(papers.parent / "out" / "papers" / "a", lambda _: None, lambda _: None)
    for name in ("convert", "filter", "code", "draft", "critique-1", "trial"):
        assert sheet.read(name).outcome == "ok", name
    assert sheet.read("draft").value["nodes"][0]["why"]
