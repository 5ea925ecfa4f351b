"""Readings as Ray's metrics, which every Ray node exports to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.telemetry.catalogue import CATALOGUE
from cluster.telemetry.metric import Kind, Metric, Reading

_TINIEST = math.ulp(0.0)
"""Added to a counter to make it known: Ray refuses 0, yet Prometheus sees a counter grow only from
the value that it saw first. It vanishes in the first sum."""


class RayMetrics:
    """The catalogue's metrics in this process, which belongs to a Ray cluster.

    A gauge is exported for about two of Ray's report intervals after it was set (10 s each by
    default, RAY_metrics_report_interval_ms), so it has to be set again meanwhile; what concerns a
    replica that is gone disappears.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {metric.name: _ray_metric(metric) for metric in CATALOGUE}
        self._known: set[tuple[str, tuple[str, ...]]] = set()

    def record(self, readings: Iterable[Reading]) -> None:
        """Set gauges, add to counters, observe histograms' values.

        Counts are told once: one reading that cannot be recorded takes no other with it.

        Raises:
            ExceptionGroup: Some could not be recorded; it has one error of each metric.
        """
        errors: dict[str, Exception] = {}
        for reading in readings:
            try:
                self._record(reading)
            except Exception as error:
                error.add_note(f"metric {reading.metric.name}, labels {reading.labels}")
                errors[reading.metric.name] = error
        if errors:
            raise ExceptionGroup(f"not recorded in full: {', '.join(errors)}", [*errors.values()])

    def _record(self, reading: Reading) -> None:
        metric, labels, value = reading
        tags = dict(zip(metric.labels, labels, strict=True))
        theirs = self._metrics[metric.name]
        if metric.kind is Kind.GAUGE:
            theirs.set(float(value), tags)
        elif metric.kind is Kind.HISTOGRAM:
            theirs.observe(float(value), tags)
        elif value > 0 or (metric.name, labels) not in self._known:
            theirs.inc(float(value) or _TINIEST, tags)
            self._known.add((metric.name, labels))


def _ray_metric(metric: Metric) -> Any:
    if metric.kind is Kind.HISTOGRAM:
        bounds = list(metric.boundaries)
        return Histogram(metric.name, metric.meaning, bounds, tag_keys=metric.labels)
    kind = Gauge if metric.kind is Kind.GAUGE else Counter
    return kind(metric.name, metric.meaning, tag_keys=metric.labels)
