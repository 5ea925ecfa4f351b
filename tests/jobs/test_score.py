"""`tiebreak score` against the published table and against quadrature."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from jobs.score import score_forecast
from policies import QueueState
from tests.jobs.simulating.factories import error_of, run_command

TABLE = [
    (3, 0.1, 20.34, 26.67, 23.00, 33.67),
    (4, 0.5, 74.58, 259.58, 100.54, 204.37),
    (5, 0.2, 155.66, 265.52, 182.21, 288.42),
    (5, 0.8, 256.06, 1111.55, 367.21, 811.83),
    (6, 1.0, 636.62, 2045.46, 841.16, 1659.35),
    (7, 0.3, 1151.03, 1979.63, 1348.99, 2140.85),
]


@pytest.mark.parametrize(("mu", "sigma", "mean", "cvar", "low", "high"), TABLE)
def test_published_scores(
    mu: float, sigma: float, mean: float, cvar: float, low: float, high: float
) -> None:
    """arXiv:2604.00499, with beta at its ends: an empty queue and a long one."""
    idle = score_forecast(mu, sigma, 2048, 0, QueueState(waiting=0, slots=8))
    busy = score_forecast(mu, sigma, 2048, 0, QueueState(waiting=40, slots=8))
    assert idle["expectation"] == pytest.approx(mean, abs=0.006)
    assert idle["cvar"] == pytest.approx(cvar, abs=0.006)
    assert (idle["beta"], busy["beta"]) == (0.1, 0.5)
    assert idle["tie"] == pytest.approx(low, abs=0.006)
    assert busy["tie"] == pytest.approx(high, abs=0.006)


def test_kv_volume_against_midpoints() -> None:
    """E[V] + beta CVaR[V] with V = x (s + x / 2), x cut at the cap."""
    t = stats.t(3.5).ppf((np.arange(400_000) + 0.5) / 400_000)
    x = np.minimum(np.exp(5 + 0.5 * t), 1000)
    volume = np.sort(x * (300 + x / 2))
    expected = volume.mean() + 0.2 * volume[-40_000:].mean()
    scores = score_forecast(5, 0.5, 1000, 300, QueueState(waiting=16, slots=8))
    assert scores["beta"] == pytest.approx(0.2)
    assert scores["kv_volume"] == pytest.approx(expected, rel=1e-4)


def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt-tokens", "10", "--waiting", "9", "--slots", "3", "--json")
    assert run_command("score", "--mu", "4", "--sigma", "0.5", "--cap", "2048", *words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == score_forecast(4, 0.5, 2048, 10, QueueState(9, 3))
    assert set(printed) == {"expectation", "cvar", "beta", "tie", "kv_volume"}


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("score", "--mu", "3", "--sigma", "0.1", "--cap", "2048") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tie", "23.0019", "tokens"] in rows


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--mu": "nan"}, "--mu is nan"),
        ({"--mu": "1000"}, "--mu is 1000, must be a number in -50..50"),
        ({"--sigma": "-0.1"}, "--sigma is -0.1"),
        ({"--cap": "0"}, "--cap is 0"),
        ({"--prompt-tokens": "-1"}, "--prompt-tokens is -1"),
        ({"--waiting": "-1"}, "--waiting is -1"),
        ({"--slots": "0"}, "--slots is 0"),
    ],
)
def test_values_out_of_range(
    change: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--mu": "4", "--sigma": "0.5", "--cap": "2048"} | change
    assert told in error_of(capsys, "score", *(f"{k}={v}" for k, v in words.items()))
