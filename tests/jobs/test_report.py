"""The report of a job against plain numpy, and its energy figure against the meters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from cluster.messages import ClusterStatus, ReplicaStatus
from jobs.report import COLUMNS, OutputReport, energy_source, joules


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


def metered(name: str, joules: float | None, source: str, node: str = "n") -> ReplicaStatus:
    return ReplicaStatus(name, "ready", node=node, total_joules=joules, energy_source=source)


def test_gpu_joules_add_up_and_a_machine_is_counted_once() -> None:
    gpus = status(metered("a", 10.0, "zeus:nvml"), metered("b", 5.0, "zeus:nvml"))
    later = status(metered("a", 30.0, "zeus:nvml"), metered("b", 9.0, "zeus:nvml"))
    assert joules(gpus, later) == pytest.approx(24.0)
    machine = status(metered("a", 70.0, "zeus:rapl"), metered("b", 71.0, "zeus:rapl"))
    assert joules(status(), machine) == pytest.approx(71.0)
    two = status(metered("a", 70.0, "zeus:rapl", "n"), metered("b", 71.0, "zeus:rapl", "m"))
    assert joules(status(), two) == pytest.approx(141.0)


def test_without_a_meter_everywhere_nothing_is_claimed() -> None:
    some = status(metered("a", 10.0, "zeus:nvml"), metered("b", None, "none"))
    assert joules(status(), some) is None
    assert energy_source(status(metered("b", None, "none"))) == "not measured"
