"""The cluster over the last hour: a point every few seconds, ever fewer of what is longer ago."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

from cluster.snapshot import HistoryPoint

FINE_S = 5.0
"""Time between two points of the last minutes."""

FINE_POINTS = 120
"""How many of those are kept: ten minutes."""

MERGED = 6
"""How many of them become one where they are longer ago: one for half a minute."""

COARSE_POINTS = 100
"""How many of those are kept: fifty minutes more."""


class History:
    """Keeps points in order; a bounded number of them, whatever the time they span."""

    def __init__(self) -> None:
        self._fine: deque[HistoryPoint] = deque()
        self._coarse: deque[HistoryPoint] = deque(maxlen=COARSE_POINTS)

    def add(self, point: HistoryPoint) -> None:
        """Add the latest point; about one in `FINE_S` seconds."""
        self._fine.append(point)
        if len(self._fine) >= FINE_POINTS + MERGED:
            self._coarse.append(merged([self._fine.popleft() for _ in range(MERGED)]))

    def points(self) -> list[HistoryPoint]:
        """All points, oldest first."""
        return [*self._coarse, *self._fine]


def merged(points: Sequence[HistoryPoint]) -> HistoryPoint:
    """One point for several that follow one another: means of what is known.

    99th percentiles stay at their largest, so that a short trouble can still be seen.
    """
    return HistoryPoint(
        unix_s=points[-1].unix_s,
        waiting_online=round(fmean(p.waiting_online for p in points)),
        waiting_offline=round(fmean(p.waiting_offline for p in points)),
        running=round(fmean(p.running for p in points)),
        kv_usage=fmean(p.kv_usage for p in points),
        tokens_per_s=fmean(p.tokens_per_s for p in points),
        ttft_p50_s=_mean([p.ttft_p50_s for p in points]),
        ttft_p99_s=max((p.ttft_p99_s for p in points if p.ttft_p99_s is not None), default=None),
        latency_p50_s=_mean([p.latency_p50_s for p in points]),
        latency_p99_s=max(
            (p.latency_p99_s for p in points if p.latency_p99_s is not None), default=None
        ),
        power_w=_mean([p.power_w for p in points]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
