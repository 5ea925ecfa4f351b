"""Policies side by side: every arm gets the same requests, under each load and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from cluster.config import ConfigError
from cluster.simulation import simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from jobs.simulating.arms import Arm
from jobs.simulating.arrivals import Arrivals, AtOnceArrivals, TraceArrivals
from jobs.simulating.curves import Curves, curves_of
from jobs.simulating.forecasts import Forecasting
from jobs.simulating.rows import RowFile, RowWriter
from jobs.simulating.summary import Offered, Summary, per_token_latency_s, summarise
from jobs.simulating.traces import read_trace
from jobs.simulating.workload import Workload, WorkloadSpec, build
from policies.bundle import policy

CAPACITY_REQUESTS = 20_000
"""Requests that capacity is measured with, unless the fleet's slots ask for more."""
CAPACITY_SHARE = 0.9
"""Share of them after which the clock is stopped: the tail runs on a fleet that empties."""
_ROUNDS = 4
"""Times the fleet's slots that capacity is measured with, at least."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is offered: one of the two, or neither for arrivals as they are.

    Attributes:
        multiple: Of the capacity.
        rate_per_s: Requests per second.
    """

    multiple: float | None = None
    rate_per_s: float | None = None

    def __str__(self) -> str:
        if self.multiple is not None:
            return f"load {self.multiple:g}"
        return (
            f"{self.rate_per_s:g} requests/s" if self.rate_per_s is not None else "as they arrive"
        )


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the fleet can do, measured without a scheduler's mistakes.

    Attributes:
        requests: How many were run.
        rate_per_s: Requests per second.
        seed: Of the requests.
    """

    requests: int
    rate_per_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare.

    Attributes:
        arms: The policies, with the forecasts of those that have their own.
        forecasts: Sources of forecasts by the names that arms use.
        forecast: Name of the source of all other arms.
        workload: The requests; seed, arrival rate and forecasts are set for each run.
        fleet: The replicas.
        loads: At least one.
        seeds: At least one.
        until: Samples whose time is wanted.
    """

    arms: Sequence[Arm]
    forecasts: dict[str, Forecasting]
    forecast: str
    workload: WorkloadSpec
    fleet: FleetSpec
    loads: Sequence[Load]
    seeds: Sequence[int]
    until: int | None = None


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm under one load and seed.

    Attributes:
        summary: Its figures.
        curves: What to draw of it; None for all seeds but the first.
    """

    summary: Summary
    curves: Curves | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of a plan.

    Attributes:
        capacities: By seed; none where all requests arrive at once.
        results: By seed, load and arm, in this order.
        notes: What must be said of the data.
    """

    capacities: list[Capacity]
    results: list[ArmResult]
    notes: list[str]


def compare(plan: Plan, folder: Path | None, tell: Callable[[str], None]) -> Comparison:
    """Run every arm under every load and seed.

    Args:
        plan: What to compare.
        folder: Where the rows of each run go and stay; None keeps none.
        tell: Is told what runs.
    """
    workloads = _Workloads(plan)
    capacities: list[Capacity] = []
    results: list[ArmResult] = []
    runs = len(plan.seeds) * len(plan.loads) * len(plan.arms)
    with TemporaryDirectory(prefix="tiebreak-") as scratch:
        for seed in plan.seeds:
            capacity = None
            if not isinstance(plan.workload.arrivals, AtOnceArrivals):
                tell(f"measuring the capacity, seed {seed}")
                at_once = workloads.get(seed, plan.forecast, AtOnceArrivals())
                capacity = measure_capacity(at_once, plan.fleet)
                capacities.append(capacity)
            for load in plan.loads:
                for arm in plan.arms:
                    tell(f"{arm.name}, {load}, seed {seed} ({len(results) + 1} of {runs})")
                    place = folder or Path(scratch)
                    path = place / _file_name(arm, load, seed if len(plan.seeds) > 1 else None)
                    results.append(_run(plan, workloads, seed, capacity, load, arm, path))
                    if folder is None:
                        path.unlink()
    return Comparison(capacities, results, workloads.notes)


def measure_capacity(at_once: Workload, fleet: FleetSpec) -> Capacity:
    """Requests per second, first come first served with known lengths.

    Known lengths admit as much as fits and evict nobody. The clock stops when `CAPACITY_SHARE` of
    the requests have finished.

    Args:
        at_once: Requests that all arrive at once; as many of them are run as it takes.
        fleet: The replicas.

    Raises:
        ConfigError: Nothing can run.
    """
    most = max(CAPACITY_REQUESTS, _ROUNDS * fleet.replicas * fleet.limits.max_num_seqs)
    ended: list[np.ndarray] = []

    def collect(rows: pa.RecordBatch) -> None:
        ended.append(rows.column("finished_s").to_numpy())

    known = policy("fcfs", admission="oracle")
    result = simulate(known, _first(at_once, most), fleet, rows=collect)
    if not result.finished:
        raise ConfigError(
            f"none of {result.refused:,} requests fits a replica of {fleet.limits.kv_tokens:,} "
            "tokens; raise --kv-tokens or --max-model-len"
        )
    finished_s = np.sort(np.concatenate(ended))
    counted = max(1, int(CAPACITY_SHARE * len(finished_s)))
    return Capacity(
        requests=result.finished + result.refused,
        rate_per_s=counted / float(finished_s[counted - 1]),
        seed=at_once.spec.seed,
    )


class _Workloads:
    """The requests by seed and forecast: their data is opened once, whatever the load."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._read = functools.cache(read_trace)
        self._built: dict[tuple[int, str], Workload] = {}

    def get(self, seed: int, forecast: str, arrivals: Arrivals) -> Workload:
        """The requests of a seed with forecasts of one source, arriving as given."""
        built = self._built.get((seed, forecast))
        if built is None:
            source = self._plan.forecasts[forecast]
            built = build(replace(self._plan.workload, seed=seed, forecasts=source))
            self._built[seed, forecast] = built
        spec = replace(built.spec, arrivals=arrivals)
        return replace(built, spec=spec, arrivals=arrivals.open(self._read))

    def rate_per_s(self, arrivals: Arrivals) -> float | None:
        """Mean arrivals per second; None where there is no such thing."""
        if isinstance(arrivals, TraceArrivals) and arrivals.rate_per_s is None:
            return self._read(arrivals.trace).rate_per_s
        return getattr(arrivals, "rate_per_s", None)

    @property
    def notes(self) -> list[str]:
        """What a report must say of the data."""
        return list(dict.fromkeys(note for w in self._built.values() for note in w.notes))


def _run(
    plan: Plan,
    workloads: _Workloads,
    seed: int,
    capacity: Capacity | None,
    load: Load,
    arm: Arm,
    path: Path,
) -> ArmResult:
    rate_per_s, arrivals = load.rate_per_s, plan.workload.arrivals
    if load.multiple is not None and capacity is not None:
        rate_per_s = load.multiple * capacity.rate_per_s
    if rate_per_s is not None:
        arrivals = arrivals.at_rate(rate_per_s)
    rate_per_s = workloads.rate_per_s(arrivals)
    forecast = arm.forecast or plan.forecast
    workload = workloads.get(seed, forecast, arrivals)
    with RowWriter(path) as sink:
        result = simulate(arm.policy, workload, plan.fleet, rows=sink)
    rows = RowFile(path)
    per_token_s = per_token_latency_s(rows)
    offered = Offered(
        forecast=forecast,
        load=str(load),
        load_multiple=rate_per_s / capacity.rate_per_s if rate_per_s and capacity else None,
        rate_per_s=rate_per_s,
        seed=seed,
    )
    summary = summarise(result, rows, plan.fleet, offered, per_token_s, plan.until)
    drawn = seed == plan.seeds[0]
    return ArmResult(summary, curves_of(result, rows, per_token_s, seed) if drawn else None)


def _first(chunks: Iterable[WorkloadChunk], count: int) -> Iterator[WorkloadChunk]:
    """The first `count` requests of a workload."""
    left = count
    for chunk in chunks:
        if left <= 0:
            return
        if len(chunk) > left:
            chunk = chunk.take(slice(left))
        left -= len(chunk)
        yield chunk


def _file_name(arm: Arm, load: Load, seed: int | None) -> str:
    what = f"{arm.name}-{load}".replace("requests/s", "per-s").replace(" ", "-").replace("/", "-")
    return f"rows-{what}.parquet" if seed is None else f"rows-{what}-seed-{seed}.parquet"
