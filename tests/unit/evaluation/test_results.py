"""What a batch of episodes amounts to, and how it is shown."""

import pytest

from klong_rl.distillation.journal import Ended, Intended, Journal, Judged, Turned
from klong_rl.evaluation.results import Episode, ended, lines
from klong_rl.evaluation.show import Results, check_lines, percent, table, turns, without_score, write
from klong_rl.judging.protocols import Usage
from klong_rl.types import EpisodeSpec, Task

TASK = Task(id="t/1", family="t", instruction="", image="i")
SPEC = EpisodeSpec(id="t-1", group="g", group_size=1, stage=0, purpose="eval", task=TASK, timeout_s=1.0, max_turns=1)
HOSTILE = "</pre><script>alert(1)</script>"


def episode(task: str, score: float | None, sample: int = 0, part: str = "p", **more) -> Episode:
    solved = None if score is None else float(score == 1.0)
    return Episode(id=f"{task}-{sample}", task=task, part=part, sample=sample, score=score, solved=solved, **more)


def results(episodes: list[Episode], repeats: int = 1) -> Results:
    about = {"suite": "s", "policy": HOSTILE, "repeats": repeats, "seed": 0, "confidence": 0.95, "at": "now"}
    return Results(about=about, lines=lines(episodes, 0.95), episodes=episodes, refused={"t9": HOSTILE})


def test_each_task_counts_once_however_many_episodes_it_has():
    [line] = lines([episode("a", 1.0, 0), episode("a", 0.0, 1), episode("b", 0.0), episode("c", 0.5)], 0.95)
    assert (line.tasks, line.episodes) == (3, 4)
    assert line.score.mean == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    assert line.solved.mean == pytest.approx(0.5 / 3) and line.best.mean == pytest.approx(1 / 3)


def test_what_failed_counts_nowhere_and_is_listed_but_its_cost():
    lost = episode("b", None, blame="infrastructure", detail="the daemon\nis away", usage=Usage(usd=1.0))
    [line] = lines([episode("a", 0.5, turns=4), lost], 0.95)
    assert (line.tasks, line.unscored, line.score.mean, line.turns, line.usage.usd) == (1, 1, 0.5, 4.0, 1.0)
    assert without_score(results([lost])) == ["no score: b-0: infrastructure: the daemon is away"]
    [nothing] = lines([lost], 0.95)
    assert nothing.score is None and percent(nothing.score) == "-"


def test_parts_come_first_and_then_all():
    found = lines([episode("a", 1.0, part="easy"), episode("b", 0.0, part="hard")], 0.95)
    assert [(line.part, line.score.mean) for line in found] == [("easy", 1.0), ("hard", 0.0), ("all", 0.5)]


def test_a_model_that_would_not_act_scores_0(tmp_path):
    journal = Journal(tmp_path / "e.jsonl")
    journal.add(Ended(kind="refused", detail="no"))
    found = ended(SPEC, "p", 0, journal)
    assert (found.score, found.solved, found.outcome) == (0.0, 0.0, "refused")


def test_no_text_of_an_agent_is_markup_on_the_page(tmp_path):
    journal = Journal(tmp_path / "e.jsonl")
    journal.add(Intended(command=HOSTILE))
    journal.add(Turned(observation=HOSTILE))
    journal.add(Ended(kind="submitted", detail=HOSTILE))
    journal.add(Judged(score=0.5, parts={HOSTILE: 1.0}, evidence={HOSTILE: HOSTILE}))
    scored = ended(SPEC, HOSTILE, 0, journal)
    lost = episode("b", None, blame=HOSTILE, detail=HOSTILE)
    write(tmp_path, results([scored, lost], repeats=2), {SPEC.id: journal})
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert table(results([scored])).title.plain == f"s: {HOSTILE}"


def test_of_a_long_episode_the_beginning_and_the_end_are_shown(tmp_path):
    journal = Journal(tmp_path / "e.jsonl")
    for number in range(200):
        journal.add(Intended(command=f"c{number}"))
        journal.add(Turned(observation=""))
    shown = turns(journal)
    assert len(shown) == 60 and shown[0][:2] == (1, "c0") and shown[-1][:2] == (200, "c199")


def test_refusals_are_counted_by_reason():
    said = check_lines(["a", "b"], {"c": "it lacks a file: x", "d": "it lacks a file: y", "e": "no task.toml"})
    assert said[0] == "2 tasks can be used, 3 are refused"
    assert [line.split("  ")[:2] for line in map(str.strip, said[1:])] == [
        ["2", "it lacks a file"],
        ["1", "no task.toml"],
    ]
