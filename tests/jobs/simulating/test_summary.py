"""Figures of a simulation against plain numpy over all rows at once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import kendalltau, spearmanr

from cluster.simulated_rows import ROW_SCHEMA
from cluster.simulation import SimulationResult
from cluster.timeline import Timeline
from cluster.virtual_replica import FleetSpec
from jobs.simulating.curves import SHARES, curves_of
from jobs.simulating.rows import RowFile, RowWriter
from jobs.simulating.summary import (
    RANKED_ROWS,
    Offered,
    forecast_quality,
    per_token_latency_s,
    summarise,
    without_nan,
)
from replicas.batch_limits import BatchLimits
from replicas.step_time import UnitStepTime

OFFERED = Offered("noisy", "load 2", 2.0, 10.0, seed=3)
FLEET = FleetSpec(2, BatchLimits(100, 16, 8, 64), UnitStepTime())


def columns(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrival = rng.random(count) * 50
    length = rng.integers(1, 300, count)
    return {
        "request": rng.permutation(count),
        "request_class": rng.integers(0, 2, count),
        "replica": rng.integers(0, 2, count),
        "arrival_s": arrival,
        "dispatched_s": arrival + 0.5,
        "first_token_s": arrival + 1 + rng.random(count),
        "finished_s": arrival + 3 + 10 * rng.random(count),
        "prompt_tokens": rng.integers(1, 50, count),
        "max_tokens": np.full(count, 280),
        "output_tokens": np.minimum(length, 280),
        "mu": np.log(length) + rng.normal(0, 1, count),
        "sigma": np.ones(count),
        "lower": np.full(count, 50),
        "upper": np.full(count, 200),
        "evictions": rng.integers(0, 2, count),
        "recomputed_tokens": rng.integers(0, 9, count),
        "energy_joules": rng.random(count),
        "wasted_joules": np.zeros(count),
        "energy_source": np.full(count, "model:made-up"),
    }


def written(folder: Path, table: dict[str, np.ndarray], pieces: int = 7) -> RowFile:
    path = folder / "rows.parquet"
    arrays = [pa.array(table[field.name]).cast(field.type) for field in ROW_SCHEMA]
    batch = pa.record_batch(arrays, schema=ROW_SCHEMA)
    step = -(-batch.num_rows // pieces) or 1
    with RowWriter(path) as sink:
        for start in range(0, batch.num_rows, step):
            sink(batch.slice(start, step))
    return RowFile(path)


def result(table: dict[str, np.ndarray]) -> SimulationResult:
    samples = np.arange(5000, dtype=np.float64)
    return SimulationResult(
        policy="tie",
        step_time="unit",
        replicas=2,
        capacity_blocks=200,
        finished=len(table["request"]),
        refused=4,
        makespan_s=80.0,
        prompt_tokens=int(table["prompt_tokens"].sum()),
        output_tokens=int(table["output_tokens"].sum()),
        evictions=11,
        recomputed_tokens=123,
        wasted_tokens=5,
        busy_s=100.0,
        uncovered_share=0.25,
        mean_waiting=3.5,
        peak_waiting=9,
        mean_memory_share=0.6,
        peak_memory_blocks=90,
        decisions=50,
        dispatches=60,
        timeline=Timeline(samples, samples, samples, samples, samples),
    )


def test_figures_equal_those_of_plain_numpy(tmp_path: Path) -> None:
    table = columns(5000)
    rows = written(tmp_path, table)
    summary = summarise(result(table), rows, FLEET, OFFERED, per_token_latency_s(rows), until=1234)
    latency = table["finished_s"] - table["arrival_s"]
    expected = {
        "latency_s": latency,
        "per_token_latency_s": latency / table["output_tokens"],
        "ttft_s": table["first_token_s"] - table["arrival_s"],
    }
    for name, values in expected.items():
        told = getattr(summary, name)
        assert told.mean == pytest.approx(values.mean())
        percentiles = np.percentile(values, [50, 90, 99])
        assert (told.p50, told.p90, told.p99) == pytest.approx(tuple(percentiles))
    for value, name in ((0, "online"), (1, "offline")):
        own = latency[table["request_class"] == value]
        assert summary.latency_by_class_s[name].p90 == pytest.approx(np.percentile(own, 90))
    assert summary.until_s == np.sort(table["finished_s"])[1233]
    work = int(table["prompt_tokens"].sum() + table["output_tokens"].sum())
    assert summary.recomputed_share == pytest.approx(123 / work)
    assert summary.requests_per_s == 5000 / 80
    assert summary.tokens_per_s == table["output_tokens"].sum() / 80
    assert (summary.peak_memory_share, summary.outside_share) == (0.9, 0.25)
    assert (summary.refused, summary.seed, summary.load_multiple) == (4, 3, 2.0)


def test_forecasts_are_judged_as_plain_numpy_does(tmp_path: Path) -> None:
    table = columns(5000)
    quality = forecast_quality(written(tmp_path, table), seed=0)
    length = table["output_tokens"]
    known = (length < 280) | (length > 200)
    inside = (length >= 50) & (length <= 200)
    assert quality.coverage == pytest.approx(inside[known].mean())
    assert quality.kendall == pytest.approx(kendalltau(table["mu"], length).statistic)
    assert quality.spearman == pytest.approx(spearmanr(table["mu"], length).statistic)
    assert quality.ranked_rows == 5000


def test_an_answer_cut_off_inside_its_interval_says_nothing_of_coverage(tmp_path: Path) -> None:
    table = columns(4) | {
        "output_tokens": np.array([100, 280, 40, 280]),
        "upper": np.array([200, 280, 200, 200]),
    }
    quality = forecast_quality(written(tmp_path, table), seed=0)
    assert quality.coverage == pytest.approx(1 / 3)  # inside; cut, unknown; below; cut, above


def test_ranks_are_correlated_on_an_even_sample(tmp_path: Path) -> None:
    """Half of the rows, the later ones, are ranked backwards: a sample from the front misses it."""
    count = 2 * RANKED_ROWS
    table = columns(count)
    mu = np.log(table["output_tokens"])
    table["mu"] = np.where(np.arange(count) < count // 2, mu, -mu)
    quality = forecast_quality(written(tmp_path, table), seed=0)
    assert quality.ranked_rows == RANKED_ROWS
    assert abs(quality.spearman) < 0.2


def test_equal_forecasts_have_no_rank_correlation(tmp_path: Path) -> None:
    quality = forecast_quality(written(tmp_path, columns(50) | {"mu": np.ones(50)}), seed=0)
    assert math.isnan(quality.kendall)
    assert math.isnan(quality.spearman)


def test_nothing_finished_is_told_without_figures(tmp_path: Path) -> None:
    table = columns(0)
    rows = written(tmp_path, table)
    none = replace(result(table), makespan_s=0.0)
    summary = summarise(none, rows, FLEET, OFFERED, per_token_latency_s(rows), until=5)
    told = summary.as_dict()
    assert told["latency_s"] == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert (told["until_s"], told["until_samples"], told["requests_per_s"]) == (None, None, None)
    assert len(curves_of(none, rows, per_token_latency_s(rows), 0).per_token_s) == 0


def test_curves_are_small_and_true(tmp_path: Path) -> None:
    table = columns(5000)
    rows = written(tmp_path, table)
    per_token_s = per_token_latency_s(rows)
    curves = curves_of(result(table), rows, per_token_s, 0)
    assert curves.per_token_s == pytest.approx(np.quantile(per_token_s, SHARES))
    latencies = dict(
        zip(table["finished_s"] - table["arrival_s"], table["output_tokens"], strict=True)
    )
    assert len(curves.latency_s) == 3000
    assert all(
        latencies[latency] == length
        for latency, length in zip(curves.latency_s, curves.output_tokens, strict=True)
    )
    assert len(curves.timeline.t_s) < 1000
    assert curves.timeline.waiting[-1] == 4999  # peaks of the queue survive thinning


def test_rows_of_a_run_that_failed_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RowWriter(tmp_path / "rows.parquet"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_json_has_no_nan() -> None:
    value = {"a": math.nan, "b": [1.0, math.inf], "c": {"d": 2}}
    assert without_nan(value) == {"a": None, "b": [1.0, None], "c": {"d": 2}}
