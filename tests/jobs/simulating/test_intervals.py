from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.workload import WorkloadError
from jobs.simulating.intervals import (
    BinInterval,
    CommonInterval,
    Interval,
    QuantileInterval,
    RelativeInterval,
)
from policies.logt import cdf
from tests.jobs.simulating.workloads import truth

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=30)
INTERVALS: st.SearchStrategy[Interval] = st.one_of(
    st.floats(0.01, 0.99).map(QuantileInterval),
    st.just(CommonInterval()),
    st.integers(1, 900).map(CommonInterval),
    st.integers(1, 900).map(BinInterval),
    st.floats(0, 1).map(RelativeInterval),
)


def bounds(interval: Interval, lengths: list[int], max_tokens: int = 500) -> list[tuple[int, int]]:
    forecast = np.log(lengths), np.zeros(len(lengths))
    lower, upper = interval.bounds(truth(lengths, max_tokens), *forecast)
    return list(zip(lower.tolist(), upper.tolist(), strict=True))


@given(INTERVALS, LENGTHS, st.floats(-1, 9), st.floats(0, 3))
def test_ends_are_in_order_and_within_the_cap(
    interval: Interval, lengths: list[int], mu: float, sigma: float
) -> None:
    given_truth = truth(lengths, 500)
    forecast = np.full(len(lengths), mu), np.full(len(lengths), sigma)
    lower, upper = interval.bounds(given_truth, *forecast)
    assert ((lower >= 1) & (lower <= upper) & (upper <= 500)).all()


@given(
    st.one_of(
        st.just(CommonInterval()),
        st.integers(1, 900).map(BinInterval),
        st.floats(0, 1).map(RelativeInterval),
        st.floats(0.01, 0.99).map(QuantileInterval),
    ),
    LENGTHS,
)
def test_true_lengths_lie_within(interval: Interval, lengths: list[int]) -> None:
    for (lower, upper), length in zip(bounds(interval, lengths), lengths, strict=True):
        assert lower <= length <= upper


@given(LENGTHS)
def test_a_point_has_no_width(lengths: list[int]) -> None:
    expected = [(length, length) for length in lengths]
    assert bounds(QuantileInterval(), lengths) == expected
    assert bounds(RelativeInterval(0), lengths) == expected
    assert bounds(BinInterval(1), lengths) == expected


def test_quantiles_are_rounded_outwards() -> None:
    mu, sigma = np.array([5.0]), np.array([0.5])
    lower, upper = QuantileInterval(0.8).bounds(truth([100]), mu, sigma)
    assert cdf(mu, sigma, lower) <= 0.1 < cdf(mu, sigma, lower + 1)
    assert cdf(mu, sigma, upper - 1) < 0.9 <= cdf(mu, sigma, upper)


def test_the_intervals_of_the_a_min_paper() -> None:
    assert bounds(CommonInterval(200), [3, 500]) == [(1, 200)] * 2
    assert bounds(CommonInterval(), [3, 500]) == [(1, 500)] * 2
    assert bounds(CommonInterval(20, 10), [3]) == [(10, 20)]
    assert bounds(BinInterval(100), [1, 100, 101, 500], 450) == [
        (1, 100),
        (1, 100),
        (101, 200),
        (401, 450),
    ]
    assert bounds(RelativeInterval(0.5), [1, 10, 101, 400]) == [
        (1, 1),
        (5, 15),
        (51, 151),
        (200, 500),
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QuantileInterval(0), "coverage is 0"),
        (lambda: CommonInterval(0), r"\[1, 0\]"),
        (lambda: CommonInterval(5, 6), r"\[6, 5\]"),
        (lambda: CommonInterval(lower_tokens=0), r"\[0, None\]"),
        (lambda: BinInterval(0), "bins are 0 tokens"),
        (lambda: RelativeInterval(1.5), "is 1.5, must be in 0 to 1"),
    ],
)
def test_figures_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        make()
