"""The display says what the records say; on a log file it is one line a step."""

import io

import pytest
from rich.console import Console

from klong_rl.monitor.metrics import StageSummary, StepMetrics
from klong_rl.monitor.progress import SPARK_STEPS, FleetStatus, Progress, State, count, duration, render, sparkline


def step_metrics(step: int, **fields) -> StepMetrics:
    values = dict(stage=2, timeout_s=90.0, reward_mean=0.25, solved_fraction=0.5, policy_version=7)
    return StepMetrics(step=step, **(values | fields))


def screen(renderable) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


def progress_to(terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=terminal, color_system=None)
    return Progress("relay", stages=3, steps=60, console=console), out


def test_the_panel_shows_where_the_run_is_and_what_the_fleet_does():
    state = State(title="relay", stages=3, steps=60).after(step_metrics(10, staleness_max=2, wait_s=4.5))
    fleet = FleetStatus(phase="waiting for windows", stage=2, episodes_running=31, episodes_finished=704)
    shown = screen(render(state.after(fleet)))
    for expected in ("stage 2/3", "timeout 1m 30s", "step 10/60", "0.250", "solved 50%", "version 7", "staleness 2",
                     "waited 4.5s", "31 running, 704 finished", "waiting for windows"):  # fmt: skip
        assert expected in shown
    assert max(len(line) for line in shown.splitlines()) <= 120


def test_the_panel_before_the_first_step_promises_nothing():
    shown = screen(render(State(title="relay", stages=3, steps=60)))
    assert "stage 1/3" in shown and "step 0/60" in shown and "reward" not in shown


def test_a_timeout_of_the_stage_before_is_not_shown_as_this_stages():
    state = State(title="relay", stages=3, steps=60).after(step_metrics(9)).after(FleetStatus(phase="", stage=3))
    shown = screen(render(state))
    assert "stage 3/3" in shown and "timeout" not in shown


def test_a_title_is_text_not_markup():
    assert "[bold]x[/bold]" in screen(render(State(title="[bold]x[/bold]", stages=1, steps=1)))


def test_the_sparkline_keeps_the_newest_steps():
    state = State(title="relay", stages=1, steps=500)
    for step in range(SPARK_STEPS + 10):
        state = state.after(step_metrics(step, reward_mean=step / 100))
    assert len(state.rewards) == SPARK_STEPS and state.rewards[-1] == (SPARK_STEPS + 9) / 100
    assert sparkline([-1.0, 0.0, 0.5, 1.0, 9.0]) == "▁▁▅██"


def test_a_log_file_gets_one_line_a_step_and_one_a_phase():
    progress, out = progress_to(terminal=False)
    with progress:
        progress.update(FleetStatus(phase="starting engines", stage=2))
        for step in (1, 2, 3):
            progress.update(FleetStatus(phase="sampling", stage=2, episodes_running=step))  # seen in the step's line
            progress.update(step_metrics(step))
    lines = out.getvalue().splitlines()
    assert lines[0] == "starting engines" and len(lines) == 4
    assert [line.split(" | ")[0] for line in lines[1:]] == [f"stage 2/3 step {n}/60" for n in (1, 2, 3)]


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_stay_and_the_end_is_a_table_of_the_stages(terminal):
    progress, out = progress_to(terminal)
    with progress:
        progress.update(step_metrics(0))
        progress.warn("engine [1] restarted")
        row = StageSummary(stage=1, timeout_s=20, steps=20, reward_mean=0.5, episodes=640, eval_before=0.125)
        progress.finish([row])
    shown = out.getvalue()
    assert "warning: engine [1] restarted" in shown
    assert "0.125" in shown and "–" in shown and "640" in shown


def test_an_exception_takes_the_display_down():
    progress, out = progress_to(terminal=True)
    with pytest.raises(RuntimeError), progress:
        raise RuntimeError("boom")
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor must be visible again"


@pytest.mark.parametrize(
    "seconds, shown",
    [(0.4, "0s"), (59.6, "1m"), (125, "2m 05s"), (3599.6, "1h"), (9000, "2h 30m")],
)
def test_duration(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize("number, shown", [(0, "0"), (9999, "9999"), (12_345, "12.3k"), (4_100_000, "4.1M")])
def test_count(number, shown):
    assert count(number) == shown
