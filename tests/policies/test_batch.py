from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from policies import Forecast, Request, RequestBatch


def test_a_batch_holds_requests_and_forecasts_as_columns() -> None:
    requests = [
        Request("a", 12, 100, arrival_s=1.5, generated_tokens=4),
        Request("b", 30, 200, output_tokens=9),
    ]
    forecasts = [Forecast(4.0, 0.5, 10, 90), Forecast.exact(9)]
    batch = RequestBatch.of(requests, forecasts)
    assert len(batch) == 2
    columns = {f.name: getattr(batch, f.name).tolist() for f in dataclasses.fields(batch)}
    assert columns == {
        "prompt_tokens": [12, 30],
        "max_tokens": [100, 200],
        "generated_tokens": [4, 0],
        "arrival_s": [1.5, 0.0],
        "mu": [4.0, math.log(9)],
        "sigma": [0.5, 0.0],
        "lower": [10, 9],
        "upper": [90, 9],
        "output_tokens": [0, 9],
    }
    assert batch.mu.dtype == np.float64
    assert batch.lower.dtype == np.int64
    assert len(RequestBatch.of([], [])) == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"generated_tokens": 10}, "generated_tokens is 10, must be in 0..9"),
        ({"output_tokens": 0}, "output_tokens is 0"),
    ],
)
def test_a_request_refuses_sizes_out_of_range(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Request("a", 1, 10), **sizes)


@pytest.mark.parametrize(
    "parameters",
    [
        (math.nan, 1.0, 1, 2),
        (1.0, -0.1, 1, 2),
        (1.0, math.inf, 1, 2),
        (1.0, 1.0, 0, 2),
        (1.0, 1.0, 3, 2),
    ],
)
def test_a_forecast_refuses_parameters_out_of_range(
    parameters: tuple[float, float, int, int],
) -> None:
    with pytest.raises(ValueError, match="forecast needs"):
        Forecast(*parameters)
