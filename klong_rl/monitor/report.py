"""`report.html`: what a run came to, as one page that needs nothing but itself.

`metrics.jsonl` and `summary.json` in, one HTML file out: charts by step as inline SVG with the stages shaded, held-out
reward by stage, how episodes ended, and the parts with their versions. No script, no font, no link; light and dark by
the reader's setting. Every text is escaped by Jinja.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import jinja2

from klong_rl.errors import UserError
from klong_rl.monitor import charts
from klong_rl.monitor.charts import Band, Chart, Series
from klong_rl.monitor.metrics import METRICS_FILE, StepMetrics, Summary, read_metrics, read_summary
from klong_rl.monitor.progress import count, duration, score

REPORT_FILE = "report.html"
NOT_A_NUMBER = 0.0  # what a chart draws where a step has no finite number


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a run, finished or not. UserError if it has no step yet."""
    run_dir = Path(run_dir)
    metrics = read_metrics(run_dir)
    if not metrics:
        raise UserError(f"no report: {run_dir / METRICS_FILE} holds no step yet; let the run finish its first step")
    path = run_dir / REPORT_FILE
    path.write_text(render_report(run_dir.name, metrics, read_summary(run_dir)), encoding="utf-8")
    return path


def render_report(title: str, metrics: Sequence[StepMetrics], summary: Summary | None) -> str:
    """The page, from at least one step."""
    steps = [step.step for step in metrics]
    bands = stage_bands(metrics)
    plots = [charts.plot(chart, steps, bands) for chart in run_charts(metrics)]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "count": count, "score": score}
    template = environment.get_template(REPORT_FILE)
    return template.render(title=title, tiles=tiles(metrics, summary), plots=plots, summary=summary, geometry=charts)


def stage_bands(metrics: Sequence[StepMetrics]) -> list[Band]:
    """One band a stage, in the order the stages ran."""
    bands, first = [], 0
    for stage, run in groupby(metrics, key=lambda step: step.stage):
        members = list(run)
        label = f"stage {stage} · {duration(members[0].timeout_s)}"
        bands.append(Band(label, first, first + len(members) - 1))
        first += len(members)
    return bands


def run_charts(metrics: Sequence[StepMetrics]) -> list[Chart]:
    def series(name: str, color: int, field: str) -> Series:
        values = [getattr(step, field) for step in metrics]
        return Series(name, color, [NOT_A_NUMBER if value is None else value for value in values])

    return [
        Chart(
            "Reward", "of the episodes trained in the step",
            (series("mean reward", 1, "reward_mean"), series("solved", 2, "solved_fraction")), "{:.2f}".format,
            top=1.0, width=1160,
        ),
        Chart(
            "Agreement of learner and sampler", "log-prob gap in nats, over action tokens of the current weights",
            (series("mean", 1, "logprob_gap_mean"), series("max", 2, "logprob_gap_max")), "{:.0e}".format, scale="log",
        ),
        Chart(
            "Staleness", "versions published since the oldest action token of the step was sampled",
            (series("largest", 1, "staleness_max"),), "{:g}".format, whole=True,
        ),
        Chart(
            "Speed", "trained tokens per second of wall time", (series("tokens/s", 1, "tokens_per_s"),), count,
        ),
        Chart(
            "Where a step's time goes", "seconds, stacked",
            (series("waiting for windows", 1, "wait_s"), series("learning", 2, "learner_s"),
             series("publishing", 3, "publish_s")), "{:.3g}".format, kind="stack",
        ),
    ]  # fmt: skip


def tiles(metrics: Sequence[StepMetrics], summary: Summary | None) -> list[tuple[str, str]]:
    """The few numbers that come first: (name, value)."""
    last = metrics[-1]
    numbers = [
        ("steps", str(len(metrics))),
        ("policy version", str(last.policy_version)),
        ("largest staleness", str(max(step.staleness_max for step in metrics))),
        ("largest log-prob gap", f"{max(step.logprob_gap_max or 0.0 for step in metrics):.0e}"),
    ]
    if summary is None:
        return [("mean reward, last step", f"{last.reward_mean:.2f}"), *numbers]
    if (improved := improvement(summary)) is not None:
        numbers.insert(0, ("held-out reward", f"{improved[0]:.2f} → {improved[1]:.2f}"))
    return [*numbers, ("episodes", count(sum(summary.outcomes.values()))), ("wall time", duration(summary.wall_s))]


def improvement(summary: Summary) -> tuple[float, float] | None:
    """Held-out reward at the last evaluated stage, of the cold start (or else before the stage) and after the stage.

    One stage alone, because stages differ in difficulty and timeout: rewards compare within a stage, not across.
    """
    for row in reversed(summary.stages):
        first = row.eval_before if row.eval_cold_start is None else row.eval_cold_start
        if first is not None and row.eval_after is not None:
            return first, row.eval_after
    return None
