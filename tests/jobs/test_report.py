"""The report of a job against plain numpy, and its energy figure against the meters."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import kendalltau

from cluster.messages import ClusterStatus, ReplicaStatus
from jobs.generate_job import Progress, RunResult
from jobs.job_energy import cluster_energy
from jobs.report import COLUMNS, OutputReport, render
from replicas.protocol import EnergyTotals


def rows(count: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 300, count)
    return pd.DataFrame(
        {
            "prompt_tokens": rng.integers(1, 50, count),
            "output_tokens": lengths,
            "finish_reason": np.where(lengths > 250, "length", "stop"),
            "queue_s": rng.random(count),
            "ttft_s": rng.random(count),
            "latency_s": 1 + rng.random(count),
            "evictions": rng.integers(0, 2, count),
            "recomputed_tokens": rng.integers(0, 9, count),
            "attempts": rng.integers(1, 3, count),
            "forecast_mu": np.log(lengths) + rng.normal(0, 1, count),
            "forecast_lower": 100,
            "forecast_upper": 200,
            "forecast_source": "prior",
            "energy_joules": np.nan,
            "wasted_joules": np.nan,
            "energy_source": None,
        }
    )[COLUMNS]


def test_figures_equal_those_of_all_rows_at_once() -> None:
    table = rows(5000)
    report = OutputReport()
    for start in range(0, 5000, 700):
        report.add(table.iloc[start : start + 700])
    assert report.rows == 5000
    assert report.totals["output_tokens"] == table["output_tokens"].sum()
    assert report.retried == (table["attempts"] > 1).sum()
    assert report.mean("latency_s") == pytest.approx(table["latency_s"].mean())
    per_token = table["latency_s"] / table["output_tokens"]
    for q in (0.5, 0.9, 0.99):
        assert report.percentile("latency_s", q) == pytest.approx(
            np.quantile(table["latency_s"], q, method="lower"), rel=0.006
        )
        assert report.percentile("per_token_latency_s", q) == pytest.approx(
            np.quantile(per_token, q, method="lower"), rel=0.006
        )
    tau = kendalltau(table["forecast_mu"], table["output_tokens"]).statistic
    assert report.rank_correlation == pytest.approx(tau)


def test_an_answer_cut_off_inside_its_interval_says_nothing_of_coverage() -> None:
    table = rows(4).assign(
        output_tokens=[150, 150, 50, 250], finish_reason=["stop", "length", "length", "length"]
    )
    report = OutputReport()
    report.add(table)
    assert report.coverage == pytest.approx(1 / 2), "one inside, one beyond, two unknown"


def status(*replicas: ReplicaStatus) -> ClusterStatus:
    return ClusterStatus("tiebreak", "m", 0, 0, 0, 0, 0, 0, 0, list(replicas), "prior")


def metered(
    name: str, joules: float, idle_joules: float = 0.0, source: str = "zeus:nvml"
) -> ReplicaStatus:
    books = EnergyTotals(
        source, joules, request_joules=joules - idle_joules, idle_joules=idle_joules
    )
    return ReplicaStatus(name, "ready", energy=books)


def test_it_tells_which_share_each_source_forecast() -> None:
    report = OutputReport()
    report.add(rows(40).assign(forecast_source=["learned"] * 30 + ["prior"] * 10))
    run = RunResult(Progress(), 1.0, False, before=status(), after=status(), rows=0)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        console.print(render(report, run))
    assert "75 % learned, 25 % prior; " in capture.get()


def test_replicas_joules_of_the_run_add_up() -> None:
    before = status(metered("a", 10.0, 4.0), metered("gone", 99.0, 1.0))
    after = status(metered("a", 30.0, 9.0), metered("new", 9.0, 5.0, "zeus:rapl-share"))
    energy = cluster_energy(before, after)
    assert (energy.metered_joules, energy.idle_joules) == pytest.approx((29.0, 10.0))
    assert energy.source == "zeus:nvml, zeus:rapl-share"
    assert energy.as_dict()["idle_share"] == pytest.approx(10 / 29)
    assert energy.told() == (
        "29 J by all replicas, 34 % of it idle power (zeus:nvml, zeus:rapl-share)"
    )


def test_without_a_meter_everywhere_nothing_is_claimed() -> None:
    unmetered = metered("b", 0.0, source="none")
    some = cluster_energy(status(), status(metered("a", 10.0), unmetered))
    assert some.metered_joules is None
    assert some.told() == "zeus:nvml, but not everywhere"
    none = cluster_energy(status(), status(unmetered))
    assert (none.told(), none.as_dict()["joules"]) == ("not measured", None)
    loading = msgspec.structs.replace(unmetered, state="loading")
    assert cluster_energy(status(), status(metered("a", 10.0), loading)).metered_joules == 10.0


def test_energy_of_rows_is_that_of_those_that_were_metered() -> None:
    table = rows(3).assign(
        output_tokens=[10, 20, 70],
        energy_joules=[5.0, 10.0, np.nan],
        wasted_joules=[0.0, 3.0, np.nan],
        energy_source=["zeus:nvml", "model:a100_sxm", None],
    )
    report = OutputReport()
    report.add(table.iloc[:1])
    report.add(table.iloc[1:])
    energy = report.energy.as_dict()
    assert energy == {
        "source": "model:a100_sxm, zeus:nvml",
        "rows": 2,
        "joules": 15.0,
        "wasted_joules": 3.0,
        "joules_per_request": 7.5,
        "joules_per_output_token": 0.5,
        "wasted_share": 0.2,
    }
    assert report.energy.told() == (
        "15 J above idle: 7.5 J per request, 0.5 J per output token; 20.0 % of it wasted on "
        "computing tokens again (model:a100_sxm, zeus:nvml)"
    )


def test_rows_of_an_older_program_were_not_metered() -> None:
    report = OutputReport()
    older = rows(5).drop(columns=["energy_joules", "wasted_joules", "energy_source"])
    report.add(older)
    assert report.energy.told() == "not measured"
    assert report.energy.as_dict()["joules"] is None
