"""The live display of a run.

    learner step ends  --> update(StepMetrics)  --+
    fleet looked at    --> update(FleetStatus)  --+--> State --> render: a panel on a terminal, redrawn as it moves
                                                               plain_line: elsewhere, one line a step
    something is wrong --> warn(text) --> a line that stays, above the panel

`State`, `render` and `plain_line` are pure: a state is the last of each record. `Progress` owns the screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from klong_rl.monitor.metrics import StageSummary, StepMetrics

SPARK_STEPS = 48
SPARK_BARS = "▁▂▃▄▅▆▇█"
REDRAWS_PER_S = 4
ROUTINE = ("sampling", "training", "checkpoint")  # phases of every step: in a log file the step's own line is enough


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver sees between two steps.

    `phase` is what the run waits for or does, in a few words. Stage 0 is what comes before the first: the cold start.
    """

    phase: str
    stage: int
    episodes_running: int = 0
    episodes_finished: int = 0
    tokens_per_s: float = 0.0
    wait_s: float = 0.0


@dataclass(frozen=True)
class State:
    """All that the display shows. `stages` and `steps` are the run's totals."""

    title: str
    stages: int
    steps: int
    last: StepMetrics | None = None
    fleet: FleetStatus | None = None
    rewards: tuple[float, ...] = ()

    def after(self, news: StepMetrics | FleetStatus) -> State:
        if isinstance(news, FleetStatus):
            return replace(self, fleet=news)
        return replace(self, last=news, rewards=(*self.rewards, news.reward_mean)[-SPARK_STEPS:])


def sparkline(values: Sequence[float], top: float = 1.0) -> str:
    """One bar a value, from 0 to `top`; what lies outside is drawn at the edge."""
    highest = len(SPARK_BARS) - 1
    return "".join(SPARK_BARS[round(min(max(value / top, 0.0), 1.0) * highest)] for value in values)


def duration(seconds: float) -> str:
    """`18s`, `4m 05s`, `2h 30m`, and `2h` where nothing is left over."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    big, small, units = (whole // 60, whole % 60, "ms") if whole < 3600 else (whole // 3600, whole % 3600 // 60, "hm")
    return f"{big}{units[0]} {small:02d}{units[1]}" if small else f"{big}{units[0]}"


def count(number: float) -> str:
    """`870`, `12.3k`, `4.1M`."""
    if number < 10_000:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.1f}M"


def score(value: float | None) -> str:
    """A reward, and a dash where nothing was evaluated."""
    return "–" if value is None else f"{value:.3f}"


def render(state: State, spinner: RenderableType = "") -> RenderableType:
    """The panel: where the run is, how the reward moves, what the fleet does."""
    last, fleet = state.last, state.fleet
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(no_wrap=True)
    if last:
        numbers = f"  {last.reward_mean:.3f}  solved {last.solved_fraction:.0%}"
        facts.add_row("reward", Text.assemble((sparkline(state.rewards), "green"), numbers))
        facts.add_row("weights", _weights(last))
        facts.add_row("last step", _step_time(last))
    if fleet:
        facts.add_row("episodes", f"{fleet.episodes_running} running, {fleet.episodes_finished} finished")
        facts.add_row("sampling", f"{count(fleet.tokens_per_s)} tokens/s, waiting {duration(fleet.wait_s)}")
    picture = Table.grid(expand=True)  # rows, not a Group: a progress bar doesn't end its line
    picture.add_row(_head(state, spinner))
    picture.add_row(ProgressBar(total=state.steps, completed=last.step if last else 0))
    picture.add_row(facts)
    return Panel(picture, title=Text(state.title), title_align="left", border_style="cyan", padding=(0, 1))


def _head(state: State, spinner: RenderableType) -> RenderableType:
    last, fleet = state.last, state.fleet
    stage = fleet.stage if fleet else last.stage if last else 1
    parts = [f"stage {stage}/{state.stages}"] if stage else ["before stage 1"]
    if last and last.stage == stage:
        parts.append(f"timeout {duration(last.timeout_s)}")
    parts.append(f"step {last.step if last else 0}/{state.steps}")
    head = Table.grid(padding=(0, 1))
    phase = fleet.phase if fleet else "starting"
    head.add_row(spinner, Text("  ·  ".join(parts), style="bold"), Text(phase, style="dim"))
    return head


def _weights(last: StepMetrics) -> str:
    mean, largest = (math.nan if gap is None else gap for gap in (last.logprob_gap_mean, last.logprob_gap_max))
    gap = f"log-prob gap {mean:.1e} (max {largest:.1e})"
    return f"version {last.policy_version}, staleness {last.staleness_max}, {gap}"


def _step_time(last: StepMetrics) -> str:
    spent = f"waited {last.wait_s:.1f}s, learned {last.learner_s:.1f}s, published {last.publish_s:.2f}s"
    return f"{last.windows} windows, {count(last.action_tokens)} action tokens; {spent}"


def plain_line(state: State) -> str:
    """A step in one line, for a log file."""
    last = state.last
    assert last is not None, "there is no line before the first step"
    where = f"stage {last.stage}/{state.stages} step {last.step}/{state.steps}"
    reward = f"reward {last.reward_mean:.3f} solved {last.solved_fraction:.0%}"
    return " | ".join((where, reward, _weights(last), _step_time(last)))


def stage_table(stages: Sequence[StageSummary]) -> Table:
    """What the run came to, a row a stage."""
    table = Table(title="held-out reward at each stage's settings", title_justify="left")
    for name in ("stage", "timeout", "cold start", "before", "after", "steps", "training", "episodes"):
        table.add_column(name, justify="right")
    for row in stages:
        evals = [score(value) for value in (row.eval_cold_start, row.eval_before, row.eval_after)]
        reward = f"{row.reward_mean:.3f}"
        table.add_row(str(row.stage), duration(row.timeout_s), *evals, str(row.steps), reward, count(row.episodes))
    return table


class Progress:
    """Owns the screen while used as a context manager; on anything but a terminal it prints one line a step."""

    def __init__(self, title: str, *, stages: int, steps: int, console: Console | None = None):
        self.state = State(title=title, stages=stages, steps=steps)
        self.console = console or Console()
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=REDRAWS_PER_S)

    def _picture(self) -> RenderableType:
        return render(self.state, self._spinner)

    def update(self, news: StepMetrics | FleetStatus) -> None:
        phase_before = self.state.fleet.phase if self.state.fleet else None
        self.state = self.state.after(news)
        if self._live is not None:
            return
        if isinstance(news, StepMetrics):
            self._print_plain(plain_line(self.state))
        elif news.phase not in (phase_before, *ROUTINE):
            self._print_plain(news.phase)

    def say(self, text: str) -> None:
        """A line that stays, above the display."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """What matters enough to be read: a line that stays, marked."""
        self.console.print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)

    def finish(self, stages: Sequence[StageSummary]) -> None:
        """Takes the display down and prints what the run came to."""
        self.__exit__()
        self.console.print(stage_table(stages))

    def _print_plain(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
