"""By how much totals have grown, for counters that can only be added to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.telemetry.catalogue import ENERGY
from cluster.telemetry.metric import Kind, Metric, Reading

CORRECTED = (ENERGY,)
"""Metrics whose totals fall when something is booked elsewhere: joules that find their owner."""


class Totals:
    """The totals that were seen last.

    A total that falls, because what counted it was replaced, begins anew from there. One of
    `CORRECTED` counts on only from the highest that was told, so that nothing is told twice.

    Args:
        counted: What others have counted already, by metric and labels.
    """

    def __init__(self, counted: Mapping[tuple[Metric, tuple[str, ...]], float] = {}) -> None:
        self._seen = dict(counted)

    def increments(self, readings: Iterable[Reading]) -> list[Reading]:
        """The readings, each counter's total replaced by what it grew by; the rest as it is."""
        return [
            self._increment(reading) if reading.metric.kind is Kind.COUNTER else reading
            for reading in readings
        ]

    def _increment(self, reading: Reading) -> Reading:
        key = reading.metric, reading.labels
        before = self._seen.get(key, 0.0)
        is_corrected = reading.metric in CORRECTED
        self._seen[key] = max(before, reading.value) if is_corrected else reading.value
        return reading._replace(value=max(0.0, reading.value - before))
