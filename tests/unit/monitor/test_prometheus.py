"""What Prometheus reads of a run; and that the dashboard, the alarms and the page use just these names."""

import json
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from klong_rl.buffer import Counts
from klong_rl.config import MonitorConfig, RunConfig
from klong_rl.errors import UserError
from klong_rl.monitor.metrics import StepMetrics
from klong_rl.monitor.prometheus import BY_NAME, COUNTER, METRICS, PACING, Numbers, endpoint
from klong_rl.pacing import EngineLook, Pacing

DOCS = Path(__file__).resolve().parents[3] / "docs"
UNITS = ("seconds", "ratio", "bytes", "nats", "steps", "tokens", "requests", "total", "per_second")
WITHOUT = {  # counts of what the name says, and plain numbers
    "klong_step", "klong_stage", "klong_reward_mean", "klong_policy_version", "klong_step_windows", "klong_loss",
    "klong_grad_norm", "klong_slots", "klong_groups_ahead", "klong_groups_wanted", "klong_actors", "klong_episodes",
    "klong_episodes_under_way", "klong_engine_episodes", "klong_windows",
}  # fmt: skip


def seen() -> Numbers:
    """Of a run in full swing."""
    numbers = Numbers("nano-seed0")
    engine = EngineLook(actor="rollout-0.1", episodes=3, ended=9, fits=8, waiting=2, kv_use=0.75, paused_s=0.0)
    status = {"actors": {"rollout": 1, "judge": 2}, "episodes": 3, "engines": [engine]}
    counts = Counts(
        states={"queued": 4, "running": 3, "judged": 20},
        outcomes={"train": {"submitted": 15, "timeout": 3}, "eval": {"submitted": 2}},
        drops={'task: "x"\nbroke': 1},
        requeues={"its actor was stopped": 2},
        windows={"ready": 5, "leased": 6, "consumed": 30, "stale": 1},
        appended={"segments": 50, "tokens": 700},
        discarded={"its sandbox was lost": 11},
    )
    numbers.look(status, counts, 123.0, Pacing.of(RunConfig()).metrics(), (1000, 4000))
    numbers.step(
        StepMetrics(step=7, stage=2, timeout_s=30.0, reward_mean=0.5, solved_fraction=0.25, policy_version=9, loss=None)
    )
    numbers.warnings = 4
    return numbers


def read(numbers: Numbers) -> dict[tuple, float]:
    """What a scrape gets: (name, *values of its labels by their names) to the number, the run's own label taken off."""
    with endpoint(MonitorConfig(prometheus_port=free_port()), numbers) as url:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == "nano-seed0"
            found[(sample.name, *labels.values())] = sample.value
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_scrape_reads_the_numbers_of_the_run():
    found = read(seen())
    assert found[("klong_step",)] == 7 and found[("klong_stage_timeout_seconds",)] == 30
    assert found[("klong_actors", "judge")] == 2 and found[("klong_episodes_under_way",)] == 3
    assert found[("klong_engine_kv_use_ratio", "rollout-0.1")] == 0.75
    assert found[("klong_episodes", "judged")] == 20 and found[("klong_windows", "leased")] == 6
    assert found[("klong_episodes_judged_total", "timeout", "train")] == 3
    assert found[("klong_episodes_dropped_total", 'task: "x"\nbroke')] == 1
    assert found[("klong_action_tokens_discarded_total", "its sandbox was lost")] == 11
    assert found[("klong_windows_consumed_total",)] == 30 and found[("klong_warnings_total",)] == 4
    assert ("klong_loss",) not in found, "what is not finite has no value"


def test_each_metric_of_the_table_gets_its_numbers():
    names = {name for name, *_ in read(seen())}
    assert names == set(BY_NAME) - {"klong_loss"}


def test_before_the_first_look_there_is_nothing_but_warnings():
    assert set(read(Numbers("nano-seed0"))) == {("klong_warnings_total",)}


def test_names_end_with_their_unit_and_say_what_they_mean():
    for metric in METRICS:
        assert (metric.name in WITHOUT) != metric.name.endswith(UNITS), metric.name
        assert (metric.kind == COUNTER) == metric.name.endswith("_total") and metric.help.endswith(".")
    assert len(BY_NAME) == len(METRICS)
    assert {key for _, key, _ in PACING} <= set(Pacing.of(RunConfig()).metrics())


def test_a_port_in_use_is_refused_in_words():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"monitor.prometheus_port={port}.*name another port"):
            with endpoint(MonitorConfig(prometheus_port=port), Numbers("r")):
                pass


def used_in(text: str) -> set[str]:
    return set(re.findall(r"\bklong_(?!rl\b)[a-z_]+", text))


def test_the_dashboard_shows_these_metrics_and_no_others():
    dashboard = json.loads((DOCS / "grafana" / "klong_rl.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert used_in(" ".join(queries)) <= set(BY_NAME)
    unseen = set(BY_NAME) - used_in(" ".join(queries))
    assert unseen == {"klong_stage_timeout_seconds", "klong_step_windows", "klong_step_action_tokens",
                      "klong_step_timestamp_seconds", "klong_look_timestamp_seconds"}  # fmt: skip
    for expr in queries:
        for name in used_in(expr):
            counted = re.search(rf"(rate|increase)\({name}\b", expr)
            assert bool(counted) == (BY_NAME[name].kind == COUNTER), expr


def test_the_alarms_ask_for_these_metrics_and_each_is_explained():
    alarms, page = (DOCS / "grafana" / "alarms.yaml").read_text(), (DOCS / "operations.md").read_text()
    expressions = re.findall(r"^ +expr: (.*)$", alarms, re.M)
    names = re.findall(r"alert: (\w+)", alarms)
    assert len(names) == len(expressions) > 5 and used_in(" ".join(expressions)) <= set(BY_NAME)
    assert all(f"`{name}`" in page for name in names)


def test_the_page_lists_each_metric_with_its_meaning():
    page = (DOCS / "operations.md").read_text()
    for metric in METRICS:
        labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
        assert f"| `{metric.name}{labels}` | {metric.kind} | {metric.help} |" in page
