"""The requests that have ended: the latest rows, percentiles, forecasts beside lengths, totals."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable

from cluster.messages import Submission
from cluster.snapshot import Event, ForecastPoint
from cluster.statistics.finished_row import FinishedRow
from cluster.statistics.latency_groups import LatencyGroups
from cluster.statistics.row_ring import RowRing

logger = logging.getLogger(__name__)

FORECASTS = 2_000
"""Latest finished requests whose forecasts are kept."""

RowListener = Callable[[FinishedRow, list[Event], Submission], None]
"""Called with a row, what happened to the request, and its latest submission."""


class FinishedRequests:
    """Takes rows in and passes them on.

    Args:
        rows: The latest ones.
        latencies: Percentiles.

    Attributes:
        rows: The latest ones.
        latencies: Percentiles.
        listeners: Called with every row, in this order; one that fails is logged.
    """

    def __init__(self, rows: RowRing, latencies: LatencyGroups) -> None:
        self.rows = rows
        self.latencies = latencies
        self.listeners: list[RowListener] = []
        self._points: deque[ForecastPoint] = deque(maxlen=FORECASTS)

    def add(
        self,
        row: FinishedRow,
        events: list[Event],
        submission: Submission,
        ended_s: float,
        *,
        is_timed: bool,
    ) -> None:
        """A request has ended.

        Args:
            row: Its row.
            events: What happened to it, in order.
            submission: Its latest.
            ended_s: When, in seconds of the controller's clock.
            is_timed: Whether its durations are known from its arrival on.
        """
        self.rows.add(row, events)
        self.latencies.add(row, ended_s, is_timed=is_timed)
        if (point := _point(row)) is not None:
            self._points.append(point)
        for listener in self.listeners:
            try:
                listener(row, events, submission)
            except Exception:
                logger.exception("a listener failed on the row of %s", row.request_id)

    def forecasts(self, count: int) -> list[ForecastPoint]:
        """Forecasts and lengths of those that ended last, at most so many."""
        return list(self._points)[-count:] if count > 0 else []


def _point(row: FinishedRow) -> ForecastPoint | None:
    """The row's forecast and length; None: it has no forecast, or was not answered."""
    mu, lower, upper = row.forecast_mu, row.forecast_lower, row.forecast_upper
    if mu is None or lower is None or upper is None or not row.output_tokens:
        return None
    if row.finish_reason not in ("stop", "length"):
        return None
    is_censored = row.finish_reason == "length"
    return ForecastPoint(math.exp(mu), lower, upper, row.output_tokens, is_censored)
