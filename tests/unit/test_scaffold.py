"""When submit is taken, what was read, what progress is reported."""

from hypothesis import given
from hypothesis import strategies as st

from klong_rl.config import RulesConfig
from klong_rl.scaffold import Report, read_so_far, reading, refusal, reports
from klong_rl.types import Task

PAPER = "\n".join(f"This is line number {n} of it." for n in range(1, 11))


def test_what_was_shown_was_read():
    assert read_so_far(PAPER, []) == (0.0, 1)
    share, unread = read_so_far(PAPER, ["$ head -3\n" + "\n".join(PAPER.splitlines()[:3]), "other"])
    assert abs(share - 0.3) < 1e-9 and unread == 4
    assert read_so_far(PAPER, [PAPER]) == (1.0, 0) == read_so_far("", [])


@given(st.lists(st.text(max_size=40)), st.integers(0, 10))
def test_showing_more_never_unreads(shown, n):
    some = ["\n".join(PAPER.splitlines()[:n])]
    assert read_so_far(PAPER, [*shown, *some]).share >= read_so_far(PAPER, some).share - 1e-12


def test_submit_is_refused_until_the_rules_are_kept():
    rules, texts = RulesConfig(submit_after=0.5, read_first=0.8), {"paper/paper.md": PAPER}
    assert "40% of the time is used, and at least 50%" in refusal(rules, texts, [PAPER], 0.4)
    told = refusal(rules, texts, ["\n".join(PAPER.splitlines()[:5])], 0.6)
    assert "50% of paper/paper.md was read, and at least 80%" in told and "line 6" in told
    assert refusal(rules, texts, [PAPER], 0.5) == "" == refusal(RulesConfig(), texts, [], 0.0)


def test_only_files_that_the_task_has_are_asked_for():
    task = Task(id="t", family="f", instruction="", image="i", files={"a": b"x"}, reading=("a", "b"))
    assert reading(task) == {"a": "x"}


def test_progress_is_parsed_and_other_comments_are_not():
    assert reports("ls\n# Progress: 250 % - all\n#progress 5%") == [Report(100, "all"), Report(5, "")]
    assert reports("# making progress\necho 40%") == []
