"""The look at a buffer shows what the records say, and nothing that isn't known."""

import io
from dataclasses import replace

from rich.console import Console

from klong_rl.buffer import Counts, InProgress, WindowRef
from klong_rl.config import RunConfig
from klong_rl.monitor.look import Look, memory, render
from klong_rl.pacing import Pacing

NOTHING = Look(
    run="nano-seed0",
    source="a copy of its append-only file: the run is down",
    at=1000.0,
    counts=Counts({}, {"train": {}, "eval": {}}, {}, {}, {}, {}, {}),
    in_progress=[],
    policy_version=0,
    committed_step=-1,
    n_complete=0,
    n_consumed=0,
    ready=[],
    leases={},
    memory=(0, 0),
)


def shown(look: Look) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(look))
    return console.file.getvalue().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    """The cells of the one row of this name."""
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]
    (found,) = [cells for cells in rows if cells[0].split(" (")[0] == name]
    return found


def ref(i: int, version: int, tokens: int = 100, group: str = "g") -> WindowRef:
    return WindowRef(f"w{i}", tokens, 10, (version,), 1, group)


def test_a_run_that_has_not_begun():
    text = "\n".join(shown(NOTHING))
    assert text.count("none yet") == 2 and "the run is down" in text and "(no limit)" in text
    assert "leases" not in text and "oldest policy version" not in text and "reason" not in text


def test_what_is_paced_is_told_in_one_line():
    numbers = Pacing.of(RunConfig()).metrics() | {"pacing_slots": 32, "pacing_episodes": 30, "pacing_kv_use": 0.41}
    text = " ".join(" ".join(line.strip("│ ") for line in shown(replace(NOTHING, pacing=numbers))).split())
    assert "30 of 32 slots in use, 0 of 8 groups ahead; engines: 0 requests wait, fullest KV cache 41%" in text


def test_episodes_by_state_with_the_ages_that_are_known():
    progress = [InProgress(f"e{i}", "running", 1000.0 - age, "a") for i, age in enumerate((5, 60, 7200))]
    progress.append(InProgress("e9", "queued", None, ""))
    counts = NOTHING.counts._replace(states={"queued": 1, "running": 3, "judged": 40})
    lines = shown(replace(NOTHING, counts=counts, in_progress=progress))
    assert row(lines, "running") == ["running", "3", "2h", "1m"]
    assert row(lines, "queued") == ["queued", "1", "–", "–"]
    assert row(lines, "judged")[1] == "40" and row(lines, "dropped")[1] == "0"


def test_a_clock_that_is_behind_makes_no_negative_age():
    progress = [InProgress("e", "running", 1003.0, "a")]
    assert row(shown(replace(NOTHING, in_progress=progress)), "running")[2] == "0s"


def test_staleness_of_what_is_ready_is_counted_from_the_oldest_token():
    look = replace(NOTHING, policy_version=9, ready=[ref(0, 9), ref(1, 7, 3000), ref(2, 7, 9000)])
    lines = shown(look)
    assert row(lines, "7") == ["7", "2", "2", "12.0k"]
    assert row(lines, "9") == ["9", "0", "1", "100"]
    assert row(lines, "ready") == ["ready", "3", "12.1k"]


def test_leases_by_step():
    leases = {12: [ref(0, 8, group="a"), ref(1, 7, group="b")], 11: [ref(2, 8, group="c")]}
    lines = shown(replace(NOTHING, policy_version=9, leases=leases))
    assert row(lines, "12") == ["12", "2", "2", "200", "7", "2"]
    assert row(lines, "11") == ["11", "1", "1", "100", "8", "1"]
    assert row(lines, "leased") == ["leased", "3", "300"]


def test_drops_and_requeues_by_reason_most_frequent_first_and_never_as_markup():
    drops = {"[red]task[/red]: gone": 2, "rare": 1} | {f"reason {i:02d}": 3 for i in range(12)}
    counts = NOTHING.counts._replace(drops=drops, requeues={"sandbox failed": 5})
    lines = shown(replace(NOTHING, counts=counts))
    assert row(lines, "2 other reasons")[1] == "3"
    assert row(lines, "sandbox failed")[1] == "5"
    few = NOTHING.counts._replace(drops={"[red]task[/red]: gone": 2})
    assert row(shown(replace(NOTHING, counts=few)), "[red]task[/red]: gone")[1] == "2"


def test_memory_against_its_limit():
    assert memory(12_300_000, 0) == "12 MB (no limit)"
    assert memory(12_000_000, 100_000_000) == "12 MB of 100 MB (12%)"
