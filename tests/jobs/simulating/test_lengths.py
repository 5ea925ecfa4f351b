from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cluster.workload import WorkloadError
from jobs.simulating.lengths import (
    DrawnLengths,
    Lengths,
    LognormalLengths,
    LognormalTokens,
    LogTLengths,
    TraceLengths,
    tokens_of,
)
from jobs.simulating.traces import read_trace
from policies.forecast import DEGREES_OF_FREEDOM
from policies.length_histogram import MAX_TOKENS
from tests.jobs.simulating.workloads import azure_file

DRAWS = 200_000


def draw(lengths: Lengths, count: int = DRAWS, start: int = 0) -> DrawnLengths:
    return lengths.open(read_trace).draw(start, count, np.random.default_rng(3))


@pytest.mark.parametrize(
    "tokens", [LognormalTokens(85.32, 45), LognormalTokens(225, 135), LognormalTokens(1500, 200)]
)
def test_log_normal_lengths_have_their_mean_and_median(tokens: LognormalTokens) -> None:
    drawn = tokens.draw(DRAWS, np.random.default_rng(3))
    assert drawn.min() >= 1
    # The standard error of the mean of the widest of the three is 0.9 %.
    assert drawn.mean() == pytest.approx(tokens.mean_tokens, rel=0.04)
    assert np.median(drawn) == pytest.approx(tokens.median_tokens, rel=0.02)


def test_log_normal_requests_do_not_depend_on_one_another() -> None:
    drawn = draw(LognormalLengths())
    assert drawn.mu is None
    assert abs(np.corrcoef(np.log(drawn.prompt_tokens), np.log(drawn.output_tokens))[0, 1]) < 0.01


def test_equal_mean_and_median_is_one_length() -> None:
    assert set(LognormalTokens(7, 7).draw(100, np.random.default_rng(3))) == {7}


def test_log_t_lengths_are_drawn_from_their_own_distributions() -> None:
    lengths = LogTLengths(mu_mean=6.0, mu_std=0.7, sigma_median=0.3, log_sigma_std=0.4)
    drawn = draw(lengths)
    assert drawn.mu is not None
    assert drawn.sigma is not None
    assert drawn.mu.mean() == pytest.approx(6.0, abs=0.01)
    assert drawn.mu.std() == pytest.approx(0.7, rel=0.02)
    assert np.median(drawn.sigma) == pytest.approx(0.3, rel=0.02)
    assert np.log(drawn.sigma).std() == pytest.approx(0.4, rel=0.02)
    residual = (np.log(drawn.output_tokens) - drawn.mu) / drawn.sigma
    for probability in (0.05, 0.25, 0.5, 0.75, 0.95):
        expected = stats.t(DEGREES_OF_FREEDOM).ppf(probability)
        assert np.quantile(residual, probability) == pytest.approx(expected, abs=0.04)


def test_tokens_stay_whole_and_in_range() -> None:
    assert tokens_of(np.array([-50.0, 0.0, np.log(7.4), 900.0])).tolist() == [1, 1, 7, MAX_TOKENS]


def test_a_trace_gives_its_lengths_in_order_and_begins_again(tmp_path: Path) -> None:
    rows = [(3, 30, 31), (1, 10, 11), (2, 20, 21)]
    lengths = TraceLengths(azure_file(tmp_path, rows))
    assert draw(lengths, 5, start=2).prompt_tokens.tolist() == [30, 10, 20, 30, 10]
    assert draw(lengths, 5, start=2).output_tokens.tolist() == [31, 11, 21, 31, 11]
    sample = lengths.open(read_trace).sample(1000, np.random.default_rng(1))
    assert set(zip(sample.prompt_tokens.tolist(), sample.output_tokens.tolist(), strict=True)) == {
        row[1:] for row in rows
    }


def test_a_trace_tells_what_was_done_to_it(tmp_path: Path) -> None:
    source = TraceLengths(azure_file(tmp_path, [(3, 1, 1), (1, 1, 1)])).open(read_trace)
    assert "1 of 2 rows" in source.notes(2)[0]
    assert len(source.notes(2)) == 1
    assert "2 rows and was repeated to make 3 requests" in source.notes(3)[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LognormalTokens(10, 11), "mean 10 and median 11"),
        (lambda: LognormalTokens(10, 0), "median 0"),
        (lambda: LognormalTokens(float("inf"), 1), "mean inf"),
        (lambda: LogTLengths(mu_mean=float("nan")), "mu_mean is nan"),
        (lambda: LogTLengths(mu_std=-1), "mu_std is -1"),
        (lambda: LogTLengths(sigma_median=0), "sigma_median is 0"),
        (lambda: LogTLengths(log_sigma_std=-0.1), "log_sigma_std is -0.1"),
    ],
)
def test_figures_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        make()
