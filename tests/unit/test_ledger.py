"""The ledger holds each surviving step once, and knows what was trained since the last durable checkpoint."""

import json

import pytest

from klong_rl.buffer import WindowRef
from klong_rl.ledger import LEDGER_FILE, Ledger, TrainedStep, read_ledger

REFS = [
    WindowRef("a/0", 40, 12, (3, 4), 1, "a"),
    WindowRef("a/1", 30, 8, (4,), 1, "a"),
    WindowRef("b/0", 20, 5, (4,), 1, "b"),
]


def entry(step: int, *groups: str) -> TrainedStep:
    return TrainedStep(step=step, version=step, action_tokens=1, staleness_max=0, groups={g: [g] for g in groups})


def test_a_step_names_its_windows_by_group(tmp_path):
    Ledger(tmp_path).write(TrainedStep.of(5, 4, 1, REFS))
    (line,) = (tmp_path / LEDGER_FILE).read_text().splitlines()
    assert json.loads(line) == {
        "step": 5, "version": 4, "action_tokens": 25, "staleness_max": 1, "groups": {"a": ["a/0", "a/1"], "b": ["b/0"]}
    }  # fmt: skip


def test_it_is_cut_back_with_the_run_and_goes_on(tmp_path):
    ledger = Ledger(tmp_path)
    for step in (1, 2, 3):
        ledger.write(entry(step, f"g{step}"))
    with open(tmp_path / LEDGER_FILE, "ab") as file:
        file.write(b'{"step":4,')  # a crash as it wrote
    again = Ledger(tmp_path, restored_step=1)
    again.write(entry(2, "g3"))
    assert [(step.step, *step.groups) for step in read_ledger(tmp_path)] == [(1, "g1"), (2, "g3")]
    with pytest.raises(ValueError, match="step 2 is not after step 2"):
        again.write(entry(2, "g2"))


def test_it_knows_groups_trained_since_a_checkpoint_in_this_life_alone(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write(entry(1, "a", "b"))
    ledger.write(entry(2, "c"))
    assert ledger.trained(["c", "b", "x"]) == {"b": 1, "c": 2}
    ledger.write(entry(3, "d"))
    ledger.sync()
    ledger.forget(2)
    assert ledger.trained(["a", "c", "d"]) == {"d": 3}
    assert Ledger(tmp_path, restored_step=2).trained(["d"]) == {}, "rolled back, and so to be trained"
