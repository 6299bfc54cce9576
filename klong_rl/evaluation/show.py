"""What an evaluation came to, three times the same: a table on the terminal, results.json, report.html.

Whatever a model or a container wrote is escaped: by Jinja on the page, as rich Text in the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from klong_rl.distillation.journal import Journal
from klong_rl.evaluation.bootstrap import Interval
from klong_rl.evaluation.results import Episode, Line
from klong_rl.judging.store import write_whole
from klong_rl.monitor.progress import count, duration

RESULTS, PAGE = "results.json", "report.html"
LISTED = 20  # of what has no score, on the terminal; the files have all
SHOWN_TURNS = 60  # of an episode on the page, half of them its last
SHOWN_CHARS = 4000  # of one text


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All of results.json. `about` says of what: suite, policy, repeats, seed and so on."""

    about: dict[str, Any]
    lines: list[Line]
    episodes: list[Episode]
    refused: dict[str, str]


def percent(value: Interval | None) -> str:
    """As `62.5 (50-75)`, in percent; there may be no interval."""
    if value is None:
        return "-"
    spread = "" if value.low is None else f" ({100 * value.low:.0f}-{100 * value.high:.0f})"
    return f"{100 * value.mean:.1f}{spread}"


def table(results: Results) -> Table:
    about = results.about
    title = Text(f"{about['suite']}: {about['policy']}")
    made = Table(title=title, caption=caption(about), box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns: dict[str, Callable[[Line], str]] = {
        "": lambda each: each.part,
        "tasks": lambda each: str(each.tasks),
        "score %": lambda each: percent(each.score),
        "solved %": lambda each: percent(each.solved),
    }
    if about["repeats"] > 1:
        columns[f"in {about['repeats']} %"] = lambda each: percent(each.best)
    if any(each.unscored for each in results.lines):
        columns["lost"] = lambda each: str(each.unscored)
    columns["turns"] = lambda each: f"{each.turns:.1f}"
    if any(each.tokens for each in results.lines):
        columns["tokens"] = lambda each: count(int(each.tokens))
    columns["time"] = lambda each: duration(each.seconds)
    if any(each.usage.usd for each in results.lines):
        columns["cost"] = lambda each: f"${each.usage.usd:.2f}"
    for name in columns:
        made.add_column(name, justify="right" if name else "left", no_wrap=True)
    for each in results.lines:
        made.add_row(*(Text(cell(each)) for cell in columns.values()))
    return made


def caption(about: Mapping[str, Any]) -> str:
    share = f"{100 * about['confidence']:g}%"
    return f"({share} intervals, by bootstrap over tasks); lost are episodes without a score; the rest are means"


def without_score(results: Results) -> list[str]:
    """A line each."""
    missing = [each for each in results.episodes if each.score is None]
    found = [f"no score: {each.id}: {each.blame}: {' '.join(each.detail.split())}" for each in missing]
    return found[:LISTED] + ([f"and {len(found) - LISTED} more without a score"] if len(found) > LISTED else [])


def write(out: Path, results: Results, journals: Mapping[str, Journal]) -> None:
    """results.json and report.html. Blocking."""
    write_whole(out / RESULTS, json.dumps(msgspec.to_builtins(results), indent=1, default=str).encode())
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "count": count, "percent": percent, "cut": cut}
    text = environment.get_template(PAGE).render(
        results=results, about=results.about, caption=caption(results.about), turns=lambda name: turns(journals[name])
        if name in journals else []
    )  # fmt: skip
    write_whole(out / PAGE, text.encode(errors="replace"))


def turns(journal: Journal) -> list[tuple[int, str, str]]:
    """(number from 1, command, observation) of the turns that are shown."""
    found = [
        (number, each.command, answer.observation)
        for number, (each, answer) in enumerate(zip(journal.intended, journal.turned, strict=False), 1)
    ]
    return found if len(found) <= SHOWN_TURNS else found[: SHOWN_TURNS // 2] + found[-SHOWN_TURNS // 2 :]


def cut(text: str) -> str:
    """Its beginning and its end."""
    half = SHOWN_CHARS // 2
    if len(text) <= SHOWN_CHARS:
        return text
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters]\n{text[-half:]}"


def check_lines(accepted: Sequence[str], refused: Mapping[str, str]) -> list[str]:
    """How many tasks can be used, and how many are refused for which reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in sorted(refused.items()):
        reasons.setdefault(why.partition(": ")[0], []).append(name)
    said = [f"{len(accepted)} tasks can be used, {len(refused)} are refused"]
    for why, names in sorted(reasons.items(), key=lambda each: -len(each[1])):
        said.append(f"{len(names):6d}  {why}  ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    return said
