from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.workload import WorkloadError
from jobs.errors import InputError
from jobs.simulating.arrivals import Arrivals, AtOnceArrivals, GammaArrivals, TraceArrivals
from jobs.simulating.traces import TraceFile, read_trace
from policies.batch import Floats
from tests.jobs.simulating.workloads import AZURE, azure_file, needs_azure

DRAWS = 100_000


def times(arrivals: Arrivals, count: int = DRAWS, start: int = 0, after_s: float = 0.0) -> Floats:
    process = arrivals.open(read_trace)
    return process.times_s(start, count, after_s, np.random.default_rng(7))


@pytest.mark.parametrize("burst", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("rate_per_s", [0.1, 250.0])
def test_gaps_have_the_rate_and_the_burst_factor(rate_per_s: float, burst: float) -> None:
    gaps = np.diff(times(GammaArrivals(rate_per_s, burst)), prepend=0)
    assert gaps.min() >= 0
    # Standard errors at 100,000 draws are below 0.7 % and 2 %.
    assert gaps.mean() * rate_per_s == pytest.approx(1, rel=0.03)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burst, rel=0.1)


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    gaps = np.diff(times(GammaArrivals(2.0)), prepend=0)
    for probability in (0.1, 0.5, 0.9, 0.99):
        expected = -np.log(1 - probability) / 2
        assert np.quantile(gaps, probability) == pytest.approx(expected, rel=0.03)


def test_a_burst_factor_of_0_is_evenly_spaced() -> None:
    assert times(GammaArrivals(4.0, 0.0), 4, after_s=10).tolist() == [10.25, 10.5, 10.75, 11.0]


@pytest.mark.parametrize("burst", [0.0, 0.5, 1.0, 3.0])
def test_another_rate_scales_every_gap(burst: float) -> None:
    slow = GammaArrivals(3.0, burst)
    np.testing.assert_allclose(times(slow.at_rate(12.0)), times(slow) / 4)


def test_at_once() -> None:
    assert set(times(AtOnceArrivals(), 5)) == {0.0}
    assert set(times(AtOnceArrivals(2.5), 5)) == {2.5}
    with pytest.raises(WorkloadError, match="all at once cannot arrive at 5 per second"):
        AtOnceArrivals().at_rate(5)


def test_a_trace_begins_again_one_mean_gap_later(tmp_path: Path) -> None:
    trace = azure_file(tmp_path, [(100, 1, 1), (101, 1, 1), (104, 1, 1)])
    assert times(TraceArrivals(trace), 7).tolist() == [0, 1, 4, 6, 7, 10, 12]
    assert times(TraceArrivals(trace), 3, start=4).tolist() == [7, 10, 12]


def test_a_trace_is_stretched_to_a_rate(tmp_path: Path) -> None:
    trace = azure_file(tmp_path, [(100, 1, 1), (101, 1, 1), (104, 1, 1)])
    at_8 = TraceArrivals(trace).at_rate(8.0)
    assert times(at_8, 4).tolist() == pytest.approx([0, 1 / 16, 4 / 16, 6 / 16])
    many = times(at_8, 3001)
    assert 3000 / many[-1] == pytest.approx(8)


def test_a_trace_of_one_instant_cannot_be_stretched(tmp_path: Path) -> None:
    trace = azure_file(tmp_path, [(100, 1, 1), (100, 1, 1)])
    with pytest.raises(InputError, match="there is no rate"):
        times(TraceArrivals(trace, 5.0), 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GammaArrivals(0), "rate is 0 per second"),
        (lambda: GammaArrivals(float("nan")), "rate is nan"),
        (lambda: GammaArrivals(1, -1), "burst factor is -1"),
        (lambda: GammaArrivals(1).at_rate(-2), "rate is -2"),
        (lambda: TraceArrivals(TraceFile("x"), 0), "rate is 0"),
        (lambda: AtOnceArrivals(-1), "at_s is -1"),
    ],
)
def test_figures_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        make()


@needs_azure
def test_the_azure_trace_at_another_rate() -> None:
    file = TraceFile(str(AZURE))
    trace = read_trace(file)
    found = times(TraceArrivals(file, 100.0), len(trace))
    assert (len(trace) - 1) / found[-1] == pytest.approx(100)
    # Its burstiness is its own.
    assert np.corrcoef(found, trace.arrival_s)[0, 1] == pytest.approx(1)
