"""The picture of the cluster that dashboards show, taken at most once a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from scipy import stats

from cluster.control.controller_state import ControllerState
from cluster.control.replica_desk import ReplicaDesk
from cluster.core.candidates import Candidate
from cluster.core.explanation import Standing
from cluster.core.projected_memory import projected_memory
from cluster.messages import ClusterStatus, ReplicaStatus
from cluster.snapshot import (
    ClusterSnapshot,
    Distribution,
    EnergyView,
    ForecastPoint,
    HistoryPoint,
    LatencyView,
    Projection,
    QueueView,
    ReplicaView,
    WaitingView,
)
from cluster.statistics.history import FINE_S, History
from policies.request import RequestClass

logger = logging.getLogger(__name__)

FRESH_S = 1.0
"""Age up to which a picture is given out again, at least."""

MOST_TIME = 0.05
"""Share of the controller's time that pictures may take: with thousands of replicas they are taken
less often."""

HEAD = 50
"""Requests of the queue that are shown."""

FORECASTS = 500
"""Finished requests whose forecasts are shown and judged."""

DRAWN = 64
"""Replicas whose memory ahead is drawn in full, those with the highest peaks; of the others the
beginning and the peak."""

POINTS = 48
"""Points of such a curve at most."""

LATELY_S = 60
"""Window of the percentiles that the curves over time show."""

RATE_S = 5.0
"""Time over which output tokens per second are averaged."""


class SnapshotTaker:
    """Takes pictures; reads the controller's state and changes nothing in it.

    Args:
        state: The controller's.
        desk: Knows the replicas' reports.
        status: Answers with the controller's status.
    """

    def __init__(
        self,
        state: ControllerState,
        desk: ReplicaDesk,
        status: Callable[[], ClusterStatus],
    ) -> None:
        self._state = state
        self._desk = desk
        self._history = History()
        self._status = status
        self._started_s = time.monotonic()
        self._taken_s, self._fresh_s = 0.0, FRESH_S
        self._latest: ClusterSnapshot | None = None
        self._made: dict[str, _Rate] = {}

    def take(self, now: float) -> ClusterSnapshot:
        """The latest picture, or a new one when that is older than `FRESH_S` (see `MOST_TIME`).

        Args:
            now: Seconds of the monotonic clock.
        """
        if self._latest is None or now - self._taken_s >= self._fresh_s:
            began_s = time.monotonic()
            self._latest, self._taken_s = self._take(now), now
            self._fresh_s = max(FRESH_S, (time.monotonic() - began_s) / MOST_TIME)
        return self._latest

    async def record_forever(self) -> None:
        """Keep the curves over time."""
        while True:
            await asyncio.sleep(FINE_S)
            try:
                self.record(time.monotonic())
            except Exception:
                logger.exception("a point of the history is missing")

    def record(self, now: float) -> None:
        """Add a point to the curves over time.

        Args:
            now: Seconds of the monotonic clock.
        """
        self._history.add(history_point(self.take(now)))

    def _take(self, now: float) -> ClusterSnapshot:
        state = self._state
        status = self._status()
        forecasts = state.statistics.forecasts(FORECASTS)
        return ClusterSnapshot(
            unix_s=time.time(),
            uptime_s=now - self._started_s,
            status=status,
            replicas=self._replicas(status.replicas, now),
            queues=[self._queue(request_class) for request_class in RequestClass],
            head=[_waiting_view(standing, now) for standing in state.scheduler.head(HEAD, now)],
            latencies=(latencies := state.statistics.latencies(now)),
            forecasts=forecasts,
            coverage=coverage(forecasts),
            rank_correlation=rank_correlation(forecasts),
            energy=self._energy_view(latencies),
            faults=state.faults.counts(),
            history=self._history.points(),
        )

    def _replicas(self, statuses: Sequence[ReplicaStatus], now: float) -> list[ReplicaView]:
        fleet = self._state.scheduler.fleet
        verdicts = {c.replica_id: c for c in self._state.scheduler.candidates(now)}
        drawn = {
            status.replica_id for status in sorted(statuses, key=_fullness, reverse=True)[:DRAWN]
        }
        made, self._made = self._made, {}
        views = []
        for status in statuses:
            replica_id = status.replica_id
            rate = self._made[replica_id] = made.get(replica_id) or _Rate()
            ledger = fleet.get(replica_id)
            slow = ledger is not None and fleet.is_avoided(replica_id)
            projection = Projection([0], [0])
            if ledger is not None and replica_id in drawn:
                projection = Projection(*projected_memory(ledger, POINTS))
            elif ledger is not None:
                profile = ledger.profile
                peak = [[profile.peak_time], [profile.peak]] if profile.peak_time else [[], []]
                projection = Projection([0, *peak[0]], [ledger.used_blocks, *peak[1]])
            views.append(
                ReplicaView(
                    status=status,
                    projection=projection,
                    tokens_per_s=rate.of(self._state.scheduler.made[replica_id], now),
                    slow=slow,
                    report_age_s=self._desk.report_age_s(replica_id, now),
                    bottleneck=_bottleneck(status, verdicts.get(replica_id), slow=slow),
                )
            )
        return views

    def _queue(self, request_class: RequestClass) -> QueueView:
        load = self._state.scheduler.queue(request_class)
        return QueueView(
            request_class=request_class.name.lower(),
            requests=load.requests,
            predicted_tokens=load.tokens,
            running=self._state.scheduler.running_of(request_class),
            retry_after_s=load.retry_after_s,
        )

    def _energy_view(self, latencies: Sequence[LatencyView]) -> EnergyView:
        view = self._state.energy.view(self._state.config.energy.power_cap_w)
        total = next((v for v in latencies if v.by == "all" and not v.window_s), None)
        if not view.sources or total is None or not total.metered_tokens:
            return view
        per_token = total.energy_joules / total.metered_tokens
        return msgspec.structs.replace(view, joules_per_output_token=per_token)


class _Rate:
    """A count that grows, and by how much per second it did lately."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def of(self, count: int, now: float) -> float:
        samples = self._samples
        samples.append((now, count))
        while len(samples) > 2 and samples[1][0] <= now - RATE_S:
            samples.popleft()
        since_s, before = samples[0]
        return max(count - before, 0) / (now - since_s) if now > since_s else 0.0


def history_point(taken: ClusterSnapshot) -> HistoryPoint:
    """What the curves over time keep of a picture."""
    replicas = [view.status for view in taken.replicas if view.status.kv_blocks]
    blocks = sum(replica.kv_blocks for replica in replicas)
    used = sum(replica.engine_load.kv_usage * replica.kv_blocks for replica in replicas)
    by_group = {(v.by, v.name): v for v in taken.latencies if v.window_s == LATELY_S}
    ttft = _measure(by_group.get(("class", "online")), "ttft_s")
    latency = _measure(
        next((v for (by, _), v in by_group.items() if by == "all"), None), "latency_s"
    )
    online, offline = (queue.requests for queue in taken.queues)
    return HistoryPoint(
        unix_s=taken.unix_s,
        waiting_online=online,
        waiting_offline=offline,
        running=taken.status.running,
        kv_usage=used / blocks if blocks else 0.0,
        tokens_per_s=sum(view.tokens_per_s for view in taken.replicas),
        ttft_p50_s=ttft.p50 if ttft else None,
        ttft_p99_s=ttft.p99 if ttft else None,
        latency_p50_s=latency.p50 if latency else None,
        latency_p99_s=latency.p99 if latency else None,
        power_w=taken.energy.power_w,
    )


def _measure(group: LatencyView | None, name: str) -> Distribution | None:
    measured = group.measures.get(name) if group is not None else None
    return measured if measured is not None and measured.count else None


def coverage(points: Sequence[ForecastPoint]) -> float | None:
    """Share of answers inside their interval; one cut off by its cap counts up to there.

    None: no answer can be judged. One that was cut off below the upper end may have ended inside
    or outside, and is left out.
    """
    judged = [p for p in points if not p.censored or p.actual > p.upper]
    if not judged:
        return None
    return sum(p.lower <= p.actual <= p.upper for p in judged) / len(judged)


def rank_correlation(points: Sequence[ForecastPoint]) -> float | None:
    """Kendall's tau-b of forecast medians and lengths; None: there are not two that differ."""
    if len(points) < 2:
        return None
    tau = float(stats.kendalltau([p.median for p in points], [p.actual for p in points]).statistic)
    return None if np.isnan(tau) else tau


def _waiting_view(standing: Standing, now: float) -> WaitingView:
    request = standing.request
    return WaitingView(
        request_id=request.request_id,
        request_class=request.request_class.name.lower(),
        tenant=request.tenant,
        position=standing.position or 0,
        key=standing.key,
        waited_s=max(now - request.arrival_s, 0.0),
        prompt_tokens=request.prompt_tokens + request.generated_tokens,
        max_tokens=request.max_tokens,
        forecast=standing.forecast,
        reason=standing.reason,
    )


def _fullness(status: ReplicaStatus) -> float:
    return status.projected_peak_blocks / status.kv_blocks if status.kv_blocks else 0.0


def _bottleneck(status: ReplicaStatus, candidate: Candidate | None, *, slow: bool) -> str:
    """Why a replica takes nothing more: not the first of the queue, or nothing at all."""
    if status.state == "leaving":
        return "draining"
    if candidate is not None:
        return "" if candidate.verdict == "fits" else candidate.verdict
    if slow:
        return "slow"
    if status.running >= status.slots > 0:
        return "slots"
    if status.kv_blocks and status.projected_peak_blocks >= status.kv_blocks:
        return "memory"
    return ""
