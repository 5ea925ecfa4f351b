"""The policies that the studies compare, with the forecasts that each is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.simulation import simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from jobs.papers.log_normal_tie import LogNormalTie
from jobs.papers.ranking import RankForecast
from jobs.simulating.forecasts import (
    ExactForecast,
    Forecasting,
    NoisyForecast,
    OracleForecast,
    RandomForecast,
)
from jobs.simulating.rows import RowFile, RowWriter
from jobs.simulating.summary import Offered, Summary, per_token_latency_s, summarise
from jobs.simulating.workload import WorkloadSpec, build
from policies.bundle import Policy, policy

NOISY = NoisyForecast()


@dataclass(frozen=True, slots=True)
class PaperArm:
    """One arm.

    Attributes:
        label: For tables and figures.
        policy: What decides.
        forecast: What it is told of a request.
    """

    label: str
    policy: Policy
    forecast: Forecasting = NOISY


def fixed_beta(beta: float) -> Mapping[str, float]:
    """Options of a `TailOrdering` whose beta does not depend on the queue."""
    return {"beta_min": beta, "beta_max": beta}


def _oracle_volume() -> Policy:
    options = {"gamma": 1.0}
    return policy("h_sf", ordering="oracle_volume", ordering_options=options)


ARMS: Mapping[str, PaperArm] = {
    "fcfs": PaperArm("FCFS", policy("fcfs")),
    "random": PaperArm("TIE, random forecasts", policy("tie"), RandomForecast(NOISY)),
    "ltr": PaperArm("ranking, tau 0.64 (LTR)", policy("sjf"), RankForecast()),
    "sjf": PaperArm("SJF (median)", policy("sjf")),
    "sept": PaperArm("SEPT (TIE, beta 0)", policy("sept")),
    "tie_fixed": PaperArm("TIE, beta 0.1", policy("tie", ordering_options=fixed_beta(0.1))),
    "tie_log_normal": PaperArm("TIE, log-normal", replace(policy("tie"), ordering=LogNormalTie())),
    "tie": PaperArm("TIE", policy("tie")),
    "tie_oracle": PaperArm("TIE, true mu, sigma", policy("tie"), OracleForecast()),
    "tie+a_min": PaperArm("TIE + A_min", policy("tie+a_min")),
    "tiebreak": PaperArm("tiebreak", policy("tiebreak")),
    "h_sf": PaperArm("H-SF (true length)", policy("h_sf"), ExactForecast()),
    "oracle_volume": PaperArm("true KV volume", _oracle_volume(), ExactForecast()),
}


def run_arm(
    arm: PaperArm, workload: WorkloadSpec, fleet: FleetSpec, until: int | None = None
) -> Summary:
    """Simulate one arm.

    Args:
        arm: The arm, whose forecasts replace the workload's.
        workload: The requests.
        fleet: The replicas.
        until: Number of finished requests whose time is wanted.
    """
    spec = replace(workload, forecasts=arm.forecast)
    with TemporaryDirectory(prefix="tiebreak-") as folder:
        path = Path(folder) / "rows.parquet"
        with RowWriter(path) as sink:
            result = simulate(arm.policy, _chunks(spec), fleet, rows=sink)
        rows = RowFile(path)
        offered = Offered(
            forecast=type(arm.forecast).__name__,
            load="",
            load_multiple=None,
            rate_per_s=None,
            seed=spec.seed,
        )
        return summarise(result, rows, fleet, offered, per_token_latency_s(rows), until)


@lru_cache(maxsize=8)
def _chunks(spec: WorkloadSpec) -> list[WorkloadChunk]:
    """The requests; most arms of a comparison are given the same ones."""
    return list(build(spec))


def figures(summary: Summary) -> dict[str, Any]:
    """What the studies keep of a summary."""
    return {
        "per_token_mean_s": summary.per_token_latency_s.mean,
        "per_token_p90_s": summary.per_token_latency_s.p90,
        "ttft_mean_s": summary.ttft_s.mean,
        "ttft_p90_s": summary.ttft_s.p90,
        "latency_mean_s": summary.latency_s.mean,
        "latency_p99_s": summary.latency_s.p99,
        "until_s": summary.until_s if summary.until_samples else None,
        "makespan_s": summary.makespan_s,
        "tokens_per_s": summary.tokens_per_s,
        "evictions": summary.evictions,
        "recomputed_share": summary.recomputed_share,
        "mean_memory_share": summary.mean_memory_share,
        "uncovered_share": summary.outside_share,
        "kendall": None
        if summary.quality.kendall != summary.quality.kendall
        else summary.quality.kendall,
        "coverage": summary.quality.coverage,
        "finished": summary.finished,
        "refused": summary.refused,
    }
