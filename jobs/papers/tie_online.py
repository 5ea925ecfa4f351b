"""Orderings and admissions under load: where prediction starts to pay (arXiv:2604.00499)."""

from __future__ import annotations

from functools import lru_cache

from jobs.papers.arms import ARMS, figures, run_arm
from jobs.papers.castillo import model_names
from jobs.papers.fleets import fleet_of, step_time_source
from jobs.papers.study import Cell, Result, Study
from jobs.papers.tie_online_section import write
from jobs.simulating.arrivals import AtOnceArrivals, GammaArrivals
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.comparison import measure_capacity
from jobs.simulating.workload import WorkloadSpec, build

LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)
MAX_TOKENS = 2_048
CAPACITY_REQUESTS = 3_000
"""Requests per replica that capacity is measured with."""


def study(
    *,
    requests: int = 1_500,
    seeds: int = 3,
    loads: tuple[float, ...] = LOADS,
    larger_replicas: int = 4,
    larger_requests: int = 3_000,
) -> Study:
    """The study: both regimes on one replica, and scarce memory on several.

    Args:
        requests: Of each run on one replica.
        seeds: Workloads of each kind; the larger cluster has one.
        loads: Multiples of the capacity.
        larger_replicas: Replicas of the larger cluster.
        larger_requests: Of each run on it.
    """
    source = step_time_source()
    shapes = [(r, 1, requests, s) for r in ("slots", "memory") for s in range(seeds)]
    shapes.append(("memory", larger_replicas, larger_requests, 0))
    cells: list[Cell] = [
        {
            "regime": regime,
            "replicas": replicas,
            "requests": count,
            "seed": seed,
            "load": load,
            "arms": list(ARMS),
            "step_time": source,
        }
        for regime, replicas, count, seed in shapes
        for load in loads
    ]
    return Study(
        name="tie_online",
        title="Who goes next, under load",
        cells=cells if model_names() else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def measure(cell: Cell) -> Result:
    """All arms on the same requests at one load."""
    capacity = capacity_per_s(cell["regime"], cell["replicas"], cell["seed"], cell["step_time"])
    workload = WorkloadSpec(
        requests=cell["requests"],
        lengths=CastilloLengths(),
        arrivals=GammaArrivals(cell["load"] * capacity),
        max_tokens=MAX_TOKENS,
        seed=cell["seed"],
    )
    fleet = fleet_of(cell["regime"], cell["replicas"], cell["step_time"])
    return {
        "capacity_per_s": capacity,
        "slots": fleet.limits.max_num_seqs,
        "kv_tokens": fleet.limits.kv_tokens,
        "arms": {name: figures(run_arm(ARMS[name], workload, fleet)) for name in cell["arms"]},
    }


@lru_cache(maxsize=32)
def capacity_per_s(regime: str, replicas: int, seed: int, step_time: str) -> float:
    """Requests per second that finish when all wait at once, lengths known, first come first."""
    workload = WorkloadSpec(
        requests=CAPACITY_REQUESTS * replicas,
        lengths=CastilloLengths(),
        arrivals=AtOnceArrivals(),
        max_tokens=MAX_TOKENS,
        seed=seed,
    )
    return measure_capacity(build(workload), fleet_of(regime, replicas, step_time)).rate_per_s
