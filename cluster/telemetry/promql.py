"""Queries of the metrics in PromQL, for the dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.telemetry.metric import Metric

CLUSTER = '{SessionName=~"$session"}'
"""Selects a Ray cluster's series: one Prometheus may scrape several."""

RATE = "[$__rate_interval]"
"""The range that Grafana finds right for rates, four scrapes at least."""

QUANTILES = (0.5, 0.99)
"""Those shown of a histogram."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        expression: In PromQL.
        legend: How Grafana names its curves.
    """

    expression: str
    legend: str = ""


def series(metric: Metric, suffix: str = "") -> str:
    """A metric's series in the chosen clusters; a histogram has several suffixes."""
    return f"{metric.exported}{suffix}{CLUSTER}"


def total(metric: Metric, *by: str) -> str:
    """The sum by labels."""
    return f"sum{_by(by)}({series(metric)})"


def most(metric: Metric, *by: str) -> str:
    """A gauge by labels: for seconds after a restart the earlier controller's is there, too."""
    return f"max{_by(by)}({series(metric)})"


def rate(metric: Metric, *by: str) -> str:
    """By how much a counter grows per second, by labels."""
    return f"sum{_by(by)}(rate({series(metric)}{RATE}))"


def quantiles(metric: Metric) -> tuple[Query, ...]:
    """Quantiles of a histogram with the label `class`, lately."""
    buckets = f"rate({series(metric, '_bucket')}{RATE})"
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by (le, class) ({buckets}))",
            f"{{{{class}}}} p{quantile * 100:g}",
        )
        for quantile in QUANTILES
    )


def ratio(part: str, whole: str) -> str:
    """A quotient that is 0, not undefined, where nothing happened."""
    return f"{part} / ({whole} > 0) or 0 * {whole}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
