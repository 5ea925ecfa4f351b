"""What a controller tells Prometheus and OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cluster.config import ClusterConfig
from cluster.messages import Submission
from cluster.snapshot import ClusterSnapshot, Event
from cluster.statistics.finished_row import FinishedRow
from cluster.telemetry.exporter import Exporter
from cluster.telemetry.trace_context import trace_context

if TYPE_CHECKING:
    from cluster.telemetry.traces import Traces


class Telemetry:
    """Metrics and traces, as far as they are configured.

    Args:
        config: Of the cluster.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._exporter = Exporter(config)
        self._traces = _traces(config)
        self._traced_share = config.telemetry.traced_share

    def ended(self, row: FinishedRow, events: list[Event], submission: Submission) -> None:
        """A request has ended (see `Statistics.on_row`)."""
        self._exporter.ended(row)
        if self._traces is not None:
            self._traces.ended(row, events, submission)

    def trace(self, submission: Submission) -> str:
        """The `traceparent` of the spans that an engine makes of a request; empty: none wanted."""
        if self._traces is None:
            return ""
        return trace_context(submission, self._traced_share).traceparent

    async def forever(
        self,
        snapshot: Callable[[float], ClusterSnapshot],
        *,
        faults: Mapping[str, int],
        is_restarted: bool,
    ) -> None:
        """Keep the metrics up to date (see `Exporter.forever`)."""
        await self._exporter.forever(snapshot, faults=faults, is_restarted=is_restarted)

    async def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)


def _traces(config: ClusterConfig) -> Traces | None:
    """What exports spans; None: nobody is configured to take them, and nothing is imported."""
    if config.telemetry.otlp_endpoint is None:
        return None
    from cluster.telemetry.traces import Traces

    return Traces(config)
