"""The display of a batch (papers, attempts): a bar on a terminal, and a line for each that is done."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from klong_rl.judging.protocols import Usage
from klong_rl.monitor.progress import count

SHOWN = 3  # of what is under way


def spent(usage: Usage) -> str:
    """Requests, tokens and dollars in words; dollars only where a price is set."""
    words = f"{usage.requests} requests, {count(usage.prompt_tokens)} + {count(usage.completion_tokens)} tokens"
    kept = f", {usage.kept} answered from what was kept" if usage.kept else ""
    return words + (f", ${usage.usd:.2f}" if usage.usd else "") + kept


class BatchProgress:
    """Owns the screen while used as a context manager."""

    def __init__(self, title: str, total: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.usage = Usage()
        self._under_way: dict[str, str] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[now]}"), console=self.console)
        self._task = self._bar.add_task(title, total=total, now="")

    def work(self, name: str, what: str) -> None:
        """`name` is at `what` now."""
        self._under_way[name] = what
        self._show()

    def spend(self, usage: Usage) -> None:
        self.usage += usage
        self._show()

    def done(self, name: str, line: str) -> None:
        """One more is done; `line` stays."""
        self._under_way.pop(name, None)
        self._bar.advance(self._task)
        self.say(line)
        self._show()

    def say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _show(self) -> None:
        some = list(self._under_way.items())[:SHOWN]
        more = f" and {len(self._under_way) - SHOWN} more" if len(self._under_way) > SHOWN else ""
        now = ", ".join(f"{name}: {what}" for name, what in some) + more
        self._bar.update(self._task, now=f"{now} · {spent(self.usage)}" if self.usage.requests else now)

    def __enter__(self) -> BatchProgress:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()
