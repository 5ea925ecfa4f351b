"""What a predictor did, as Prometheus metrics of the Ray cluster it runs in."""

from __future__ import annotations

import math
import sys
from typing import Any, Protocol

from predictor.messages import PredictorStats

PREFIX = "tiebreak_predictor_"


class PredictorMetrics(Protocol):
    """Where the state of a predictor is shown."""

    def update(self, stats: PredictorStats) -> None:
        """Show this state from now on."""


class NoMetrics:
    """Outside Ray nobody asks."""

    def update(self, stats: PredictorStats) -> None:
        """Nothing."""


class RayMetrics:
    """Gauges of the watch, and counters that follow the totals in `PredictorStats`.

    `tiebreak_predictor_coverage`, `_rank`, `_rank_prior`, `_gain` and `_trusted` (1 or 0) are those
    of `WatchStats`; `_forecasts_total` is by `source` (`learned` or `prior`), `_failed_total`,
    `_overflowed_total` and `_fallbacks_total` are without labels of ours.
    """

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        def gauge(name: str, description: str) -> Any:
            return Gauge(PREFIX + name, description)

        def counter(name: str, description: str, labels: tuple[str, ...] = ()) -> Any:
            return Counter(PREFIX + name, description, labels)

        self._gauges = {
            "coverage": gauge("coverage", "Share of recent answers inside their interval."),
            "rank": gauge("rank", "Kendall's tau-b of the network's forecasts and lengths."),
            "rank_prior": gauge("rank_prior", "Kendall's tau-b of the prior's."),
            "gain": gauge("gain", "Log-likelihood over the prior's, in nats per answer."),
            "trusted": gauge("trusted", "1 while the network's forecasts are served, else 0."),
        }
        self._forecasts = counter("forecasts_total", "Forecasts given.", ("source",))
        self._failed = counter("failed_total", "Queries the network could not answer.")
        self._overflowed = counter("overflowed_total", "Queries that found the queue full.")
        self._fallbacks = counter("fallbacks_total", "Times that the network lost its trust.")
        self._shown = PredictorStats()

    def update(self, stats: PredictorStats) -> None:
        """Set the gauges, and raise the counters by what is new."""
        before, self._shown = self._shown, stats
        learned = stats.learned - before.learned
        others = stats.forecasts - before.forecasts - learned
        _raise(self._forecasts, learned, {"source": "learned"})
        _raise(self._forecasts, others, {"source": "prior"})
        _raise(self._failed, stats.failed - before.failed)
        _raise(self._overflowed, stats.overflowed - before.overflowed)
        if stats.watch is None:
            return
        known = before.watch.fallbacks if before.watch is not None else 0
        _raise(self._fallbacks, stats.watch.fallbacks - known)
        for name, gauge in self._gauges.items():
            value = float(getattr(stats.watch, name))
            if not math.isnan(value):
                gauge.set(value)


def open_metrics() -> PredictorMetrics:
    """Ray's metrics in a process that is part of a Ray cluster, else none."""
    ray: Any = sys.modules.get("ray")
    return RayMetrics() if ray is not None and ray.is_initialized() else NoMetrics()


def _raise(counter: Any, by: int, labels: dict[str, str] | None = None) -> None:
    if by > 0:
        counter.inc(by, labels)
