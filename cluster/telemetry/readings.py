"""What the metrics say of a snapshot of the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cluster.snapshot import ClusterSnapshot, EnergyView, ReplicaView
from cluster.telemetry import catalogue as metrics
from cluster.telemetry.metric import Metric, Reading
from predictor.messages import PredictorStats

STATES = ("placing", "loading", "ready", "lost", "leaving", "failed")
"""Values of the label `state`."""


def readings(snapshot: ClusterSnapshot, coverage_target: float) -> Iterator[Reading]:
    """Every gauge, and every counter's total, that a snapshot has an answer to.

    Args:
        snapshot: Of the cluster.
        coverage_target: Share of answers that forecast intervals should contain.
    """
    yield from _cluster(snapshot)
    yield from _queues(snapshot)
    states = Counter(view.status.state for view in snapshot.replicas)
    for state in sorted(states.keys() | set(STATES)):
        yield Reading(metrics.REPLICAS, (state,), states[state])
    for view in snapshot.replicas:
        yield from _replica(view)
    yield Reading(metrics.COVERAGE_TARGET, (), coverage_target)
    yield from _known(metrics.COVERAGE, snapshot.coverage)
    yield from _known(metrics.RANK_CORRELATION, snapshot.rank_correlation)
    yield from _predictors(snapshot.status.predictors)
    for event, count in snapshot.faults.items():
        yield Reading(metrics.FAULTS, (event,), count)
    yield from _energy(snapshot.energy)


def _cluster(snapshot: ClusterSnapshot) -> Iterator[Reading]:
    status = snapshot.status
    yield Reading(metrics.INFO, (status.policy, status.model), 1)
    yield Reading(metrics.UPTIME, (), snapshot.uptime_s)
    yield Reading(metrics.CLIENTS, (), status.clients)
    yield Reading(metrics.ADMISSIONS, (), status.dispatched)
    yield Reading(metrics.REFUSED, (), status.refused)
    yield Reading(metrics.EVICTIONS, (), status.preemptions)
    yield Reading(metrics.RECALLS, (), status.recalls)
    yield Reading(metrics.RECOMPUTED, (), status.recomputed_tokens)


def _queues(snapshot: ClusterSnapshot) -> Iterator[Reading]:
    for queue in snapshot.queues:
        labels = (queue.request_class,)
        yield Reading(metrics.QUEUE_REQUESTS, labels, queue.requests)
        yield Reading(metrics.QUEUE_TOKENS, labels, queue.predicted_tokens)
        yield Reading(metrics.QUEUE_DRAIN, labels, queue.retry_after_s)
        yield Reading(metrics.RUNNING, labels, queue.running)


def _replica(view: ReplicaView) -> Iterator[Reading]:
    status = view.status
    labels = (status.replica_id,)
    yield Reading(metrics.REPLICA_KV_BLOCKS, labels, status.kv_blocks)
    yield Reading(metrics.REPLICA_KV_USED, labels, status.used_blocks)
    yield Reading(metrics.REPLICA_KV_PEAK, labels, status.projected_peak_blocks)
    yield Reading(metrics.REPLICA_KV_ENGINE, labels, status.engine_load.kv_usage)
    yield Reading(metrics.REPLICA_RUNNING, labels, status.running)
    yield Reading(metrics.REPLICA_STALLED, labels, status.engine_load.waiting)
    yield Reading(metrics.REPLICA_SLOTS, labels, status.slots)
    yield Reading(metrics.REPLICA_TOKENS, labels, view.tokens_per_s)
    yield Reading(metrics.REPLICA_SLOW, labels, view.slow)
    yield from _known(metrics.REPLICA_LEDGER_AGE, view.report_age_s, labels)


def _predictors(stats: list[PredictorStats]) -> Iterator[Reading]:
    watches = [s.watch for s in stats if s.watch is not None]
    yield Reading(metrics.FALLBACK, (), sum(not watch.trusted for watch in watches))
    yield Reading(metrics.FALLBACKS, (), sum(watch.fallbacks for watch in watches))
    learned = sum(s.learned for s in stats)
    yield Reading(metrics.FORECASTS, ("network",), learned)
    yield Reading(metrics.FORECASTS, ("prior",), sum(s.forecasts for s in stats) - learned)


def _energy(energy: EnergyView) -> Iterator[Reading]:
    yield from _known(metrics.POWER_CAP, energy.power_cap_w)
    for totals in energy.by_source:
        source = totals.source
        for use, joules in (
            ("request", totals.request_joules),
            ("idle", totals.idle_joules),
            ("unattributed", totals.unattributed_joules),
        ):
            yield Reading(metrics.ENERGY, (source, use), joules)
        yield Reading(metrics.ENERGY_WASTED, (source,), totals.wasted_joules)
        if energy.power_w is not None:
            yield from _known(metrics.POWER, totals.power_w, (source,))


def _known(metric: Metric, value: float | None, labels: tuple[str, ...] = ()) -> Iterator[Reading]:
    """A gauge that is not known now is not exported, rather than with a figure that means none."""
    if value is not None:
        yield Reading(metric, labels, value)
