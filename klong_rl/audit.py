"""`python -m klong_rl.audit run=DIR [judge.signing_key_file=FILE]`: are the verdicts those that were given, and earned?

    broken       a signature, a hash or a score that doesn't hold; an archived score without its record, or another one
    unsigned     judged without a key: whoever can write to DIR could have changed it
    suspicious   a score above 0 that a person should look at, and why

It only reads. Exit code 1 if something is broken, else 0. (What killed parts of a run lost is another audit:
docs/chaos.md.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from klong_rl.cli import run_main
from klong_rl.errors import UserError
from klong_rl.judging.archived import ArchivedEpisode, archived
from klong_rl.judging.record import Record, Records, signing_key
from klong_rl.judging.store import Damaged, Store
from klong_rl.judging.suspicion import suspicions
from klong_rl.judging.verify import problems, unverified
from klong_rl.preflight import CONFIG_FILE
from klong_rl.types import Task
from klong_rl.wire import decode

USAGE = "use run=DIR, the directory of a run, and judge.signing_key_file=FILE if its key isn't where the run says"


@dataclass
class Findings:
    """What an audit found: texts by episode."""

    n_records: int = 0
    broken: dict[str, list[str]] = field(default_factory=dict)
    unsigned: dict[str, list[str]] = field(default_factory=dict)
    suspicious: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: dict[str, list[str]], episode: str, texts: Sequence[str]) -> None:
        if texts:
            kind.setdefault(episode, []).extend(texts)


def audit(run_dir: Path, key: bytes | None) -> Findings:
    """Everything that is wrong with, or odd about, the verdicts of a run."""
    store, findings = Store(run_dir), Findings()
    episodes = archived(run_dir)
    records, unreadable = Records(store.folder / "records").all()
    findings.note(findings.broken, "(a record)", unreadable)
    kept = {sha256 for _, sha256 in records}
    for name, episode in episodes.items():
        if episode.score is not None and episode.record not in kept:
            findings.note(findings.broken, name, [f"scored {episode.score:g} in the archive, without a record of it"])
    for record, sha256 in records:
        episode = episodes.get(record.episode)
        if episode is None or episode.record == sha256 or episode.record not in kept:
            _one(record, episode, store, key, findings)  # else another judge's verdict was the first
    return findings


def _one(record: Record, episode: ArchivedEpisode | None, store: Store, key: bytes | None, findings: Findings) -> None:
    findings.n_records += 1
    name = record.episode
    findings.note(findings.broken, name, problems(record, store, key))
    findings.note(findings.unsigned, name, [why] if (why := unverified(record, key)) else [])
    if episode is not None and episode.score not in (None, record.score):
        findings.note(
            findings.broken, name, [f"score {episode.score:g} in the archive, {record.score:g} in its record"]
        )
    try:
        task = decode(store.get(record.task), Task)
        commands = episode.commands if episode is not None else []
        findings.note(findings.suspicious, name, suspicions(record, task, commands, store))
    except Damaged:
        return  # `problems` has named it


def show(findings: Findings, console: Console) -> None:
    """One line a finding, the worst kind first."""
    for kind, found in (("broken", findings.broken), ("suspicious", findings.suspicious)):
        for episode, texts in found.items():
            for text in texts:
                console.print(f"{kind}: {episode}: {text}", markup=False, highlight=False, soft_wrap=True)
    if findings.unsigned:
        why = next(iter(findings.unsigned.values()))[0]
        console.print(f"not verified: {len(findings.unsigned)} records: {why}", markup=False, soft_wrap=True)
    console.print(
        f"{findings.n_records} records: {len(findings.broken)} broken, {len(findings.suspicious)} suspicious, "
        f"{len(findings.unsigned)} not verified"
    )


def main(arguments: Sequence[str]) -> int:
    """Audit the run; the exit code."""
    run_dir, key_file = parse(arguments)
    findings = audit(run_dir, signing_key(key_file))
    show(findings, Console())
    return 1 if findings.broken else 0


def parse(arguments: Sequence[str]) -> tuple[Path, str]:
    """The run directory, and the file of its key ("" for the environment's). Raises UserError."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := [name for name in given if name not in ("run", "judge.signing_key_file") or not given[name]]:
        raise UserError(f"{unknown[0]} is not understood; {USAGE}")
    if "run" not in given:
        raise UserError(f"no run is named; {USAGE}")
    run_dir = Path(given["run"]).resolve()
    config = run_dir / CONFIG_FILE
    if not config.exists():
        raise UserError(f"run={run_dir} holds no {CONFIG_FILE}, so it isn't a run that was launched; {USAGE}")
    stored = json.loads(config.read_text())
    if recorded := stored.get("rollout", {}).get("recorded"):
        raise UserError(f"run={run_dir} judged nothing, it played back {recorded}; audit the run that this is of")
    own = stored.get("judge", {}).get("signing_key_file", "")
    return run_dir, given.get("judge.signing_key_file", own)


if __name__ == "__main__":
    run_main(main)
