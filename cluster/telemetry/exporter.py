"""Keeps the metrics up to date while the controller runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from cluster.config import ClusterConfig
from cluster.snapshot import ClusterSnapshot
from cluster.statistics.finished_row import FinishedRow
from cluster.telemetry.catalogue import ENERGY, ENERGY_WASTED, FAULTS
from cluster.telemetry.metric import Metric, Reading
from cluster.telemetry.ray_metrics import RayMetrics
from cluster.telemetry.readings import readings
from cluster.telemetry.row_tally import RowTally
from cluster.telemetry.totals import Totals

logger = logging.getLogger(__name__)


class Exporter:
    """Updates the metrics from a snapshot and from the rows since the last one.

    Args:
        config: Of the cluster.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._interval_s = config.telemetry.metrics_interval_s
        self._coverage_target = config.predictor.coverage
        self._tally = RowTally(config.telemetry.metrics_tenants)

    def ended(self, row: FinishedRow) -> None:
        """A request has ended."""
        if self._interval_s is not None:
            self._tally.add(row)

    async def forever(
        self,
        snapshot: Callable[[float], ClusterSnapshot],
        *,
        faults: Mapping[str, int],
        is_restarted: bool,
    ) -> None:
        """Update the metrics again and again; returns at once when there are to be none.

        Ray's metrics are set in a thread: with a thousand replicas there are ten thousand of them,
        and no decision waits for that.

        Args:
            snapshot: Takes one, of a moment in seconds of the monotonic clock.
            faults: Faults counted before this process, which the snapshot's include.
            is_restarted: Whether an earlier controller has told the energy of replicas that run
                on, which the first snapshot includes.
        """
        if self._interval_s is None:
            return
        metrics = RayMetrics()
        totals: Totals | None = None
        while True:
            try:
                taken = list(readings(snapshot(time.monotonic()), self._coverage_target))
                if totals is None:
                    totals = Totals(told_before(taken, faults, is_restarted=is_restarted))
                update = totals.increments(taken) + self._tally.take()
                await asyncio.to_thread(metrics.record, update)
            except Exception:
                logger.exception("the metrics were not updated")
            await asyncio.sleep(self._interval_s)


def told_before(
    first: list[Reading], faults: Mapping[str, int], *, is_restarted: bool
) -> dict[tuple[Metric, tuple[str, ...]], float]:
    """Totals that an earlier controller has told already, by metric and labels.

    Args:
        first: This controller's first readings.
        faults: Faults that were counted before it.
        is_restarted: Whether there was an earlier one: replicas count energy from their own start.
    """
    told: dict[tuple[Metric, tuple[str, ...]], float] = {
        (FAULTS, (event,)): count for event, count in faults.items()
    }
    if is_restarted:
        told |= {(m, labels): v for m, labels, v in first if m in (ENERGY, ENERGY_WASTED)}
    return told
