"""Snapshots of clusters that do not exist, for tests of what shows them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from cluster.messages import ClusterStatus, ReplicaStatus
from cluster.snapshot import (
    Candidate,
    ClusterSnapshot,
    Distribution,
    EnergyView,
    Event,
    Explanation,
    ForecastPoint,
    HistoryPoint,
    LatencyView,
    Projection,
    QueueView,
    ReplicaView,
    WaitingView,
)
from policies.forecast import Forecast
from replicas.protocol import EnergyTotals, EngineLoad

FORECAST = Forecast(mu=5.0, sigma=0.4, lower=80, upper=300, source="learned")


def replica(
    name: str, used: int = 500, peak: int = 700, *, running: int = 12, **fields: Any
) -> ReplicaView:
    """One of 1,024 blocks and 16 slots, whose memory rises to its peak and falls again."""
    status = {
        name: fields.pop(name) for name in ("state", "error", "node", "kv_blocks") if name in fields
    }
    steps = list(range(0, 480, 16))
    rise = np.concatenate([np.linspace(used, peak, 15), np.linspace(peak, 0, 15)])
    return ReplicaView(
        status=ReplicaStatus(
            replica_id=name,
            **{"state": "ready", "node": "10.0.0.7", "kv_blocks": 1024, **status},
            model="a-model",
            engine="simulated",
            block_size=16,
            slots=16,
            running=running,
            used_blocks=used,
            projected_peak_blocks=peak,
            engine_load=EngineLoad(running=running, waiting=0, kv_usage=used / 1024),
        ),
        projection=Projection(steps, [round(b) for b in rise.tolist()]),
        tokens_per_s=100.0 * running,
        report_age_s=0.2,
        **fields,
    )


def waiting(position: int, **fields: Any) -> WaitingView:
    """The one at a position of the queue."""
    told: dict[str, Any] = {
        "request_id": f"request-{position}",
        "request_class": "online",
        "tenant": "alice",
        "position": position,
        "key": 1000.0 * position,
        "waited_s": 3.0 / position,
        "prompt_tokens": 120,
        "max_tokens": 512,
        "forecast": FORECAST,
        "reason": "waits for memory: needs 84 blocks at its peak; the best replica (replica-1) "
        "would reach 1,060 of 1,024 in 212 steps",
    }
    return WaitingView(**{**told, **fields})


def points(count: int = 300, seed: int = 0, error: float = 0.5) -> list[ForecastPoint]:
    """Forecasts whose medians are off by a log-normal factor."""
    rng = np.random.default_rng(seed)
    median = np.exp(rng.normal(5, 0.8, count))
    actual = np.clip(median * np.exp(rng.normal(0, error, count)), 1, 1024)
    return [
        ForecastPoint(m, max(1, int(m / 2.2)), int(m * 2.2) + 1, int(a), censored=int(a) == 1024)
        for m, a in zip(median.tolist(), actual.tolist(), strict=True)
    ]


def history(count: int = 120, now_s: float = 1_790_000_000.0) -> list[HistoryPoint]:
    """One point every 5 s."""
    phase = np.sin(np.arange(count) / 9)
    return [
        HistoryPoint(
            unix_s=now_s - 5.0 * (count - i),
            waiting_online=int(20 + 15 * wave),
            waiting_offline=int(200 + 50 * wave),
            running=40,
            kv_usage=0.7 + 0.2 * wave,
            tokens_per_s=4000 + 800 * wave,
            ttft_p50_s=0.2 + 0.1 * wave,
            ttft_p99_s=1.1 + 0.4 * wave,
            latency_p50_s=4 + wave,
            latency_p99_s=19 + 5 * wave,
            power_w=620 + 60 * wave,
        )
        for i, wave in enumerate(phase.tolist())
    ]


def latency(by: str, name: str, window_s: int, scale: float = 1.0) -> LatencyView:
    def spread(median: float) -> Distribution:
        return Distribution(400, median * 1.3, median, median * 3, median * 6)

    measures = {"queue_s": 0.4, "ttft_s": 0.6, "latency_s": 5.0, "per_token_latency_s": 0.03}
    told = {measure: spread(value * scale) for measure, value in measures.items()}
    return LatencyView(by, name, window_s, 400, 60_000, 9_000.0, told)


def snapshot(replicas: list[ReplicaView] | None = None, **fields: Any) -> ClusterSnapshot:
    """A busy cluster of four replicas, one of them full, one lost."""
    if replicas is None:
        replicas = [
            replica("replica-0", 400, 640),
            replica("replica-1", 900, 1010, running=15, bottleneck="memory"),
            replica("replica-2", 600, 650, running=16, bottleneck="slots"),
            replica("replica-3", 0, 0, running=0, state="lost", error="its process ended"),
        ]
    groups = [("all", "all"), ("class", "online"), ("class", "offline"), ("tenant", "alice")]
    groups += [("tenant", "bob"), ("replica", "replica-0"), ("policy", "tiebreak")]
    told: dict[str, Any] = {
        "unix_s": 1_790_000_000.0,
        "uptime_s": 4_000.0,
        "status": ClusterStatus(
            policy="tiebreak",
            model="a-model",
            waiting=232,
            running=sum(r.status.running for r in replicas),
            finished=8_765,
            refused=12,
            preemptions=34,
            recomputed_tokens=5_678,
            clients=3,
            replicas=[r.status for r in replicas],
            predictor="8,765 by the network, 0 by the prior",
            recalls=9,
        ),
        "replicas": replicas,
        "queues": [
            QueueView("online", 32, 6_400, 40, 4.0),
            QueueView("offline", 200, 90_000, 3, 61.0),
        ],
        "head": [waiting(n, tenant="bob" if n % 3 == 0 else "alice") for n in range(1, 21)],
        "latencies": [
            latency(by, name, window_s, 1 + number / 10)
            for number, (by, name) in enumerate(groups)
            for window_s in (60, 300, 900, 0)
        ],
        "forecasts": points(),
        "coverage": 0.91,
        "rank_correlation": 0.62,
        "energy": EnergyView(
            totals=EnergyTotals("model:a-gpu", 1000.0, 640.0, 40.0, 350.0, 10.0, 612.0),
            sources=["model:a-gpu"],
            by_source=[EnergyTotals("model:a-gpu", 1000.0, 640.0, 40.0, 350.0, 10.0, 612.0)],
            power_w=612.0,
            power_cap_w=700.0,
            joules_per_output_token=0.42,
        ),
        "faults": {"replica_frozen": 0, "replica_process_died": 1, "replica_replaced": 1},
        "history": history(),
    }
    return ClusterSnapshot(**{**told, **fields})


def many(count: int) -> ClusterSnapshot:
    """A cluster of many replicas, each a little fuller than the one before."""
    views = [
        replica(f"replica-{n}", 1 + n * 1000 // count, 2 + n * 1022 // count) for n in range(count)
    ]
    return snapshot(views)


def explanation(request_id: str = "request-1", **fields: Any) -> Explanation:
    """Of a request that waits for memory."""
    told: dict[str, Any] = {
        "request_id": request_id,
        "state": "waiting",
        "reason": waiting(1).reason,
        "request_class": "online",
        "tenant": "alice",
        "job": "",
        "prompt_tokens": 120,
        "max_tokens": 512,
        "output_tokens": 0,
        "forecast": FORECAST,
        "key": 1000.0,
        "position": 1,
        "candidates": [
            Candidate("replica-1", 900, 1010, 1060, 1024, 1, "memory"),
            Candidate("replica-2", 600, 650, 720, 1024, 0, "slots"),
        ],
        "candidates_of": 3,
        "events": [Event(0.0, "arrived"), Event(0.04, "forecast", "median 148, 80 to 300 tokens")],
    }
    return Explanation(**{**told, **fields})


def without_work(view: ReplicaView) -> ReplicaView:
    """The same replica when nothing runs there."""
    status = msgspec.structs.replace(
        view.status, running=0, used_blocks=0, projected_peak_blocks=0, engine_load=EngineLoad()
    )
    return msgspec.structs.replace(
        view, status=status, projection=Projection([0], [0]), bottleneck="", tokens_per_s=0.0
    )
