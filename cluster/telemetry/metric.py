"""What a metric is: its name, what it counts, by which labels."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

RAY_PREFIX = "ray_"
"""What Ray puts before the name of every metric that it exports."""


class Kind(enum.StrEnum):
    """Prometheus' types of metrics."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric; two are the same only if they are one object, which makes them cheap as keys.

    Attributes:
        name: Its name in the code, without Ray's prefix; the last word is its unit.
        kind: Its type.
        labels: Names of its labels; each has few values whatever the cluster does.
        meaning: What it says, in a sentence.
        boundaries: Upper ends of a histogram's buckets, ascending, in its unit.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it."""
        return RAY_PREFIX + self.name


class Reading(NamedTuple):
    """A value of a metric.

    Attributes:
        metric: Which.
        labels: Values of its labels, in the metric's order.
        value: A gauge's value, a counter's total since the controller started or (from a row) what
            is added to it, or one observation of a histogram.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float


def gauge(name: str, meaning: str, *labels: str) -> Metric:
    """A metric that goes up and down."""
    return Metric(name, Kind.GAUGE, labels, meaning)


def counter(name: str, meaning: str, *labels: str) -> Metric:
    """A metric that only grows; its name ends in `_total`."""
    return Metric(name, Kind.COUNTER, labels, meaning)


def histogram(name: str, meaning: str, boundaries: tuple[float, ...], *labels: str) -> Metric:
    """A metric of a value per request, counted in buckets."""
    return Metric(name, Kind.HISTOGRAM, labels, meaning, boundaries)
