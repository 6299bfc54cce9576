"""The report is one page that loads nothing, escapes everything and says what the run's files say."""

import math
import re
from html.parser import HTMLParser

import msgspec
import pytest

from klong_rl.errors import UserError
from klong_rl.monitor.metrics import MetricsLog, StageSummary, StepMetrics, Summary, write_summary
from klong_rl.monitor.report import improvement, stage_bands, write_report

HOSTILE = '<script>alert("x")</script>'


def step_metrics(step: int, **fields) -> StepMetrics:
    values = dict(stage=(step + 1) // 2, timeout_s=30.0, reward_mean=0.5, solved_fraction=0.5, policy_version=step)
    return StepMetrics(step=step, **(values | fields))


def write_run(run_dir, steps=4, **fields):
    with MetricsLog(run_dir) as log:
        for step in range(1, steps + 1):
            log.write(step_metrics(step, **fields))


def summary(**fields) -> Summary:
    rows = (
        StageSummary(stage=1, timeout_s=30, steps=2, reward_mean=0.4, episodes=20, eval_cold_start=0.0625,
                     eval_before=0.125, eval_after=0.5),
        StageSummary(stage=2, timeout_s=60, steps=2, reward_mean=0.6, episodes=20, eval_cold_start=0.25,
                     eval_before=0.5, eval_after=0.875),
    )  # fmt: skip
    values = dict(stages=rows, outcomes={"turn_limit": 3, "submitted": 37}, wall_s=125.0, parts={"ray": "2.60.0"})
    return Summary(**(values | fields))


def page_text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


class Balance(HTMLParser):
    """Fails on a tag that is closed but not open, or the other way round."""

    def __init__(self):
        super().__init__()
        self.open_tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "link"):
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def test_the_page_says_what_the_files_say(tmp_path):
    write_run(tmp_path, staleness_max=3)
    write_summary(tmp_path, summary())
    html = write_report(tmp_path).read_text()
    shown = page_text(html)
    for expected in ("0.25 → 0.88", "0.062", "0.125", "0.875", "turn limit 3", "submitted 37", "ray 2.60.0", "2m 05s",
                     "stage 2 · 30s", "largest staleness 3", "waiting for windows"):  # fmt: skip
        assert expected in shown
    assert html.count("<svg") == 5
    balance = Balance()
    balance.feed(html)
    assert balance.open_tags == []


def test_improvement_compares_within_the_last_evaluated_stage():
    first, last = summary().stages
    assert improvement(summary()) == (0.25, 0.875)
    assert improvement(summary(stages=(first, msgspec.structs.replace(last, eval_after=None)))) == (0.0625, 0.5)
    assert improvement(summary(stages=(msgspec.structs.replace(first, eval_cold_start=None),))) == (0.125, 0.5)
    assert improvement(summary(stages=())) is None


def test_the_page_loads_nothing(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, summary())
    html = write_report(tmp_path).read_text()
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link", html)


def test_every_text_is_escaped(tmp_path):
    run_dir = tmp_path / "<b>run<b>"
    write_run(run_dir)
    write_summary(run_dir, summary(parts={HOSTILE: HOSTILE}, outcomes={HOSTILE: 1}))
    html = write_report(run_dir).read_text()
    assert "<script" not in html and "<b>" not in html and "&lt;script&gt;" in html


def test_a_run_that_goes_on_has_a_report_too(tmp_path):
    write_run(tmp_path, steps=1)
    shown = page_text(write_report(tmp_path).read_text())
    assert "not finished yet" in shown and "mean reward, last step 0.50" in shown


def test_a_diverged_run_has_a_report_too(tmp_path):
    write_run(tmp_path, logprob_gap_mean=math.nan, logprob_gap_max=math.inf, loss=math.nan)
    html = write_report(tmp_path).read_text()
    assert html.count("<svg") == 5 and not re.search(r"\b(nan|inf)\b", html)


def test_no_step_yet_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no step yet"):
        write_report(tmp_path)


def test_one_band_a_stage():
    bands = stage_bands([step_metrics(step) for step in range(1, 6)])
    assert [(band.first, band.last) for band in bands] == [(0, 1), (2, 3), (4, 4)]
