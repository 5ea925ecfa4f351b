from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.workload import WorkloadError
from jobs.errors import InputError
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.learned_forecast import LearnedForecast
from jobs.simulating.workload import build
from policies.batch import Floats
from predictor.excerpt import excerpt
from predictor.prompts import Prompts
from tests.jobs.simulating.workloads import joined, spec

SHORT, LONG = "name a river", "write a long essay about rivers"


class ByText:
    """Knows two prompts, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[Prompts] = []

    def predict(self, prompts: Prompts) -> tuple[Floats, Floats]:
        self.asked.append(prompts)
        known = {SHORT: 2.0, LONG: 6.0}
        mu = np.array([known.get(text, np.nan) for text in prompts.text])
        return mu, np.where(np.isnan(mu), np.nan, 0.3)


def labels(folder: Path, texts: list[Any], **columns: Any) -> CastilloLengths:
    path = folder / "labels.parquet"
    table = {
        "model": ["m/One"] * len(texts),
        "prompt": texts,
        "prompt_tokens": pa.array(range(5, 5 + len(texts)), pa.int32()),
        "output_tokens": [[10 * (i + 1), 10 * (i + 1) + 3] for i in range(len(texts))],
        **columns,
    }
    pq.write_table(pa.table(table), path)
    return CastilloLengths("m/One", str(path))


def test_each_request_gets_the_forecast_of_its_own_prompt(tmp_path: Path) -> None:
    network = ByText()
    lengths = labels(tmp_path, [SHORT, LONG])
    workload = build(
        spec(500, lengths, forecasts=LearnedForecast(lambda: network), max_tokens=1000)
    )
    chunk = joined(workload)
    assert set(chunk.prompt_tokens) == {5, 6}
    assert np.array_equal(chunk.mu, np.where(chunk.prompt_tokens == 5, 2.0, 6.0))
    assert (chunk.sigma == 0.3).all()
    joined(workload)
    (asked,) = network.asked  # once for all requests and both passes
    assert asked.max_tokens.tolist() == [1000, 1000]


def test_the_prior_answers_where_the_network_has_no_answer(tmp_path: Path) -> None:
    lengths = labels(tmp_path, [SHORT, "something else"])
    workload = build(spec(500, lengths, forecasts=LearnedForecast(ByText)))
    chunk = joined(workload)
    other = chunk.prompt_tokens == 6
    assert (chunk.mu[~other] == 2.0).all()
    assert chunk.mu[other] == pytest.approx(np.log(21), abs=0.7)
    assert len(np.unique(chunk.mu[other])) == 1


def test_prompts_are_cut_as_for_training_and_keep_their_temperature(tmp_path: Path) -> None:
    network = ByText()
    long_text = "word " * 2000
    lengths = labels(tmp_path, [SHORT, long_text], temperature=[0.0, 0.7])
    joined(build(spec(10, lengths, forecasts=LearnedForecast(lambda: network))))
    assert network.asked[0].text == [SHORT, excerpt(long_text)]
    assert network.asked[0].temperature.tolist() == [0.0, 0.7]


def test_the_cap_of_the_labels_bounds_the_workload(tmp_path: Path) -> None:
    lengths = labels(tmp_path, [SHORT, LONG], max_tokens=[23, 23])
    with pytest.raises(WorkloadError, match="stopped at 23 tokens"):
        build(spec(10, lengths, max_tokens=24))
    chunk = joined(build(spec(200, lengths, max_tokens=23)))
    assert chunk.output_tokens.max() == 23


def test_lengths_without_prompts_are_refused() -> None:
    with pytest.raises(WorkloadError, match="--lengths castillo"):
        build(spec(10, forecasts=LearnedForecast(ByText)))


def test_prompts_that_are_no_text_are_refused(tmp_path: Path) -> None:
    lengths = labels(tmp_path, [1, 2])
    with pytest.raises(InputError, match="must be text"):
        joined(build(spec(10, lengths, forecasts=LearnedForecast(ByText))))
