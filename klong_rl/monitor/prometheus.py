"""The numbers of a run for Prometheus: names, units and meaning in one table, and the endpoint that serves them.

    a learner step ends ──▶ Numbers.step ──┐
    each second         ──▶ Numbers.look ──┴─▶ samples ◀── GET http://HOST:PORT/metrics, from Prometheus

`monitor.prometheus_port` turns it on. A look or a step replaces its samples as a whole, so a scrape, which comes in
another thread, sees one moment of each. What a name means is told to Prometheus as its help, and in docs/operations.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from klong_rl.buffer import Counts
from klong_rl.config import MonitorConfig
from klong_rl.errors import UserError
from klong_rl.monitor.metrics import StepMetrics

GAUGE, COUNTER = "gauge", "counter"


class Metric(NamedTuple):
    """`name` ends with its unit, in base units; a counter's with `_total`. Every metric has the label `run` too."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


# Gauges of the last learner step: name, field of StepMetrics, help.
STEP = (
    ("klong_step", "step", "Learner steps done."),
    ("klong_stage", "stage", "Stage of the curriculum, from 1."),
    ("klong_stage_timeout_seconds", "timeout_s", "Active seconds that an episode of the stage may take."),
    ("klong_reward_mean", "reward_mean", "Mean score of the episodes of the last step, 0 to 1."),
    ("klong_solved_ratio", "solved_fraction", "Share of the episodes of the last step with score 1."),
    ("klong_policy_version", "policy_version", "Policy version that the last step was computed from."),
    ("klong_staleness_max_steps", "staleness_max", "Learner updates between the oldest token trained and the weights."),
    ("klong_step_windows", "windows", "Windows of the last step."),
    ("klong_step_action_tokens", "action_tokens", "Action tokens, which are the targets, of the last step."),
    ("klong_step_wait_seconds", "wait_s", "Waiting for windows in the last step."),
    ("klong_step_learner_seconds", "learner_s", "Forward, backward and optimizer of the last step."),
    ("klong_step_publish_seconds", "publish_s", "Getting the weights of the last step into all engines."),
    ("klong_trained_tokens_per_second", "tokens_per_s", "Tokens of the windows of the last step, by its wall time."),
    ("klong_logprob_gap_mean_nats", "logprob_gap_mean", "Mean difference of log-probs, sampler and learner."),
    ("klong_logprob_gap_max_nats", "logprob_gap_max", "Largest difference of log-probs, sampler and learner."),
    ("klong_loss", "loss", "Loss of the objective in the last step."),
    ("klong_grad_norm", "grad_norm", "Norm of the gradient before clipping, in the last step."),
    ("klong_clip_ratio", "clip_fraction", "Share of the action tokens that the objective clipped in the last step."),
    ("klong_kl_nats", "kl", "KL divergence of the learner from the sampler in the last step, estimator k3."),
)
# Gauges of klong_rl.pacing: name, key, help.
PACING = (
    ("klong_slots", "pacing_slots", "Episodes that all rollout actors may run at once."),
    ("klong_groups_ahead", "pacing_groups_ahead", "Groups admitted and not yet leased."),
    ("klong_groups_wanted", "pacing_groups_wanted", "Groups ahead that the learner's pace asks for."),
)
METRICS = (
    *(Metric(name, GAUGE, text) for name, _, text in (*STEP, *PACING)),
    Metric("klong_step_timestamp_seconds", GAUGE, "Unix time at which the last step ended."),
    Metric("klong_look_timestamp_seconds", GAUGE, "Unix time of the last look at fleet and buffer."),
    Metric("klong_actors", GAUGE, "Actors at work.", ("pool",)),
    Metric("klong_episodes_under_way", GAUGE, "Episodes that actors run now."),
    Metric("klong_sampled_tokens_per_second", GAUGE, "Tokens that all engines sampled, over the last second."),
    Metric("klong_engine_kv_use_ratio", GAUGE, "Share of the KV cache in use.", ("engine",)),
    Metric("klong_engine_waiting_requests", GAUGE, "Requests that the engine could not begin yet.", ("engine",)),
    Metric("klong_engine_episodes", GAUGE, "Episodes under way on the engine.", ("engine",)),
    Metric("klong_episodes", GAUGE, "Episodes in each state.", ("state",)),
    Metric("klong_windows", GAUGE, "Windows ready to be leased, or leased and not committed.", ("state",)),
    Metric("klong_buffer_memory_bytes", GAUGE, "Memory that Redis uses."),
    Metric("klong_buffer_memory_limit_bytes", GAUGE, "Memory that Redis may use; 0: no limit."),
    Metric("klong_episodes_judged_total", COUNTER, "Episodes with a verdict.", ("purpose", "outcome")),
    Metric("klong_episodes_dropped_total", COUNTER, "Episodes that ended without a score.", ("reason",)),
    Metric(
        "klong_episodes_requeued_total", COUNTER, "Times an episode was given back to go on elsewhere.", ("reason",)
    ),
    Metric("klong_windows_consumed_total", COUNTER, "Windows trained, in steps that are durable."),
    Metric("klong_windows_stale_total", COUNTER, "Windows dropped since they were too stale to train."),
    Metric("klong_action_tokens_appended_total", COUNTER, "Action tokens that came into the buffer."),
    Metric("klong_action_tokens_discarded_total", COUNTER, "Action tokens given up, to be sampled anew.", ("reason",)),
    Metric("klong_warnings_total", COUNTER, "Warnings told since this launch."),
)
BY_NAME = {metric.name: metric for metric in METRICS}

Samples = Mapping[str, Sequence[tuple[tuple[str, ...], float]]]  # by metric: the values of its labels, and the number


class Numbers:
    """The newest samples of one run."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.warnings = 0
        self._step: Samples = {}
        self._look: Samples = {}

    def step(self, metrics: StepMetrics) -> None:
        """A learner step ended. What isn't finite is left out."""
        values = {name: getattr(metrics, field) for name, field, _ in STEP} | {
            "klong_step_timestamp_seconds": time.time()
        }
        self._step = {name: [((), float(value))] for name, value in values.items() if value is not None}

    def look(
        self,
        status: Mapping[str, Any],
        counts: Counts,
        tokens_per_s: float,
        pacing: Mapping[str, float],
        memory: tuple[int, int],
    ) -> None:
        """At the fleet (Fleet.status), the buffer (counts, and bytes used and allowed) and the pacing's metrics."""
        one = {
            "klong_look_timestamp_seconds": time.time(),
            "klong_episodes_under_way": status["episodes"],
            "klong_sampled_tokens_per_second": tokens_per_s,
            "klong_buffer_memory_bytes": memory[0],
            "klong_buffer_memory_limit_bytes": memory[1],
            "klong_windows_consumed_total": counts.windows.get("consumed", 0),
            "klong_windows_stale_total": counts.windows.get("stale", 0),
            "klong_action_tokens_appended_total": counts.appended.get("tokens", 0),
            **{name: pacing[key] for name, key, _ in PACING if key in pacing},
        }
        engines = status["engines"]
        self._look = {name: [((), float(value))] for name, value in one.items()} | {
            "klong_actors": _by_label(status["actors"]),
            "klong_engine_kv_use_ratio": [((each.actor,), each.kv_use) for each in engines],
            "klong_engine_waiting_requests": [((each.actor,), each.waiting) for each in engines],
            "klong_engine_episodes": [((each.actor,), each.episodes) for each in engines],
            "klong_episodes": _by_label(counts.states),
            "klong_windows": _by_label({key: counts.windows.get(key, 0) for key in ("ready", "leased")}),
            "klong_episodes_dropped_total": _by_label(counts.drops),
            "klong_episodes_requeued_total": _by_label(counts.requeues),
            "klong_action_tokens_discarded_total": _by_label(counts.discarded),
            "klong_episodes_judged_total": [
                ((purpose, kind), n) for purpose, kinds in counts.outcomes.items() for kind, n in kinds.items()
            ],
        }

    def samples(self) -> Samples:
        """All there are now."""
        return {**self._step, **self._look, "klong_warnings_total": [((), self.warnings)]}

    def collect(self) -> Iterator[Any]:
        """As prometheus_client's registry wants it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {GAUGE: GaugeMetricFamily, COUNTER: CounterMetricFamily}
        samples = self.samples()
        for metric in METRICS:
            family = families[metric.kind](metric.name, metric.help, labels=("run", *metric.labels))
            for labels, value in samples.get(metric.name, ()):
                family.add_metric((self.run, *labels), value)
            yield family


def _by_label(numbers: Mapping[str, float]) -> list[tuple[tuple[str, ...], float]]:
    return [((label,), value) for label, value in numbers.items()]


def endpoint(config: MonitorConfig, numbers: Numbers) -> AbstractContextManager[str]:
    """Serves `numbers` while it is held; gives the URL. Raises UserError for an address that can't be taken."""
    return _serve(config.prometheus_host, config.prometheus_port, numbers)


@contextmanager
def _serve(host: str, port: int, numbers: Numbers) -> Iterator[str]:
    from prometheus_client import start_http_server
    from prometheus_client.core import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(numbers)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UserError(
            f"monitor.prometheus_port={port} of monitor.prometheus_host={host} can't be taken: {error.strerror}; name "
            "another port, or 0 for no endpoint"
        ) from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
