"""Calibration of a network: what is promised of its intervals and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.batch import Floats, Ints
from policies.fit import Bools
from policies.forecast import DEGREES_OF_FREEDOM as NU
from predictor.conformal import Calibration, CalibrationError, calibrate

FAR = 1 << 40


def biased(
    prompts: int, samples: int, seed: int, cap: int = FAR
) -> tuple[Floats, Floats, Ints, Bools]:
    """A network whose mu is 0.4 too low and errs by 0.5, while its sigma knows the spread only."""
    rng = np.random.default_rng(seed)
    mu, sigma = rng.normal(6, 1, prompts), rng.uniform(0.3, 0.8, prompts)
    center = mu + 0.4 + 0.5 * rng.standard_normal(prompts)
    noise = rng.standard_t(NU, (prompts, samples))
    tokens = np.ceil(np.exp(center[:, None] + sigma[:, None] * noise)).clip(1, cap)
    return mu, sigma, tokens.astype(np.int64), tokens >= cap


def covered(calibration: Calibration, coverage: float, seed: int, prompts: int = 20_000) -> Bools:
    """Whether the intervals hold answers to other prompts, as rows of below, inside, above."""
    mu, sigma, tokens, _ = biased(prompts, 1, seed)
    lower, upper = calibration.bounds(*calibration.corrected(mu, sigma), coverage)
    below, above = tokens[:, 0] < np.floor(lower), tokens[:, 0] > np.ceil(upper)
    return np.stack((below, ~(below | above), above))


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.98])
def test_intervals_cover_answers_to_other_prompts(coverage: float) -> None:
    calibration = calibrate(*biased(5000, 4, seed=1))
    below, inside, above = covered(calibration, coverage, seed=2).mean(axis=1)
    assert inside == pytest.approx(coverage, abs=0.015)
    assert below == pytest.approx(above, abs=0.012)
    raw = Calibration(0.0, 1.0, calibration.probabilities, calibration.z, 1, 1)
    assert covered(raw, coverage, seed=2).mean(axis=1)[1] < inside - 0.01


def test_few_prompts_give_wider_intervals_never_narrower_ones() -> None:
    rates = [
        covered(calibrate(*biased(40, 3, seed)), 0.9, seed=99, prompts=2000)[1].mean()
        for seed in range(60)
    ]
    assert 0.9 <= np.mean(rates) <= 0.96


def test_shift_and_scale_are_those_of_the_residuals() -> None:
    mu, sigma, tokens, cut = biased(20_000, 1, seed=3)
    calibration = calibrate(mu, sigma, tokens, cut)
    location, spread = calibration.corrected(mu, sigma)
    log_x = np.log(tokens[:, 0])
    assert np.median(log_x - location) == pytest.approx(0, abs=0.02)
    # Half of a standard t with 3.5 degrees of freedom lies within 0.75; these residuals, a t and a
    # normal together, are nearly one.
    assert np.median(np.abs((log_x - location) / spread)) == pytest.approx(0.75, abs=0.05)
    assert np.median(np.abs((log_x - mu) / sigma)) > 1


def test_the_networks_own_error_is_told_from_the_spread_of_answers() -> None:
    rng = np.random.default_rng(7)
    mu, sigma = rng.normal(6, 1, 4000), np.where(rng.random(4000) < 0.5, 0.1, 1.0)
    center = mu + 0.5 * rng.standard_t(NU, 4000)
    tokens = np.exp(center[:, None] + sigma[:, None] * rng.standard_t(NU, (4000, 3)))
    calibration = calibrate(mu, sigma, tokens.astype(np.int64) + 1, np.zeros((4000, 3), bool))
    assert calibration.error == pytest.approx(0.5, rel=0.25)
    location, spread = calibration.corrected(mu, sigma)
    z = np.abs(np.log(tokens) - location[:, None]) / spread[:, None]
    narrow, wide = np.median(z[sigma < 0.5]), np.median(z[sigma > 0.5])
    assert narrow == pytest.approx(wide, rel=0.15)  # a factor alone would be five times off
    assert calibration.own_sigma(spread) == pytest.approx(sigma, rel=1e-6)


def test_caps_hide_little_of_the_quantiles_below_them() -> None:
    free = calibrate(*biased(20_000, 1, seed=4))
    mu, sigma, tokens, cut = biased(20_000, 1, seed=4, cap=1500)
    assert 0.1 < cut.mean() < 0.3
    capped = calibrate(mu, sigma, tokens, cut)
    naive = calibrate(mu, sigma, tokens, np.zeros_like(cut))
    highs = [c.bounds(*c.corrected(5.5, 0.5), 0.8)[1] for c in (free, capped, naive)]
    assert highs[1] / highs[0] == pytest.approx(1, abs=0.1)
    assert highs[2] / highs[0] < 0.8


def test_levels_that_every_cap_hides_go_on_upwards() -> None:
    mu, sigma = np.full(200, 5.0), np.full(200, 0.5)
    tokens = np.exp(5 + 0.5 * np.random.default_rng(0).standard_t(NU, 200))
    cut = tokens > 150
    calibration = calibrate(mu, sigma, np.where(cut, 150, tokens)[:, None], cut[:, None])
    z = np.array(calibration.z)
    assert (np.diff(z) >= 0).all()
    assert calibration.quantile(0.95) > calibration.quantile(0.8) > calibration.quantile(0.6)
    # Beyond the cap it can only be as good as the t that carries it on: twice the true quantile.
    _, upper = calibration.bounds(*calibration.corrected(5.0, 0.5), 0.9)
    assert 0.5 < upper / np.quantile(tokens, 0.95) < 2


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    rng = np.random.default_rng(5)
    tokens = np.zeros((100, 50), np.int64)
    tokens[:, 0] = np.exp(5 + 0.5 * rng.standard_normal(100))
    tokens[:10] = 10_000
    many = calibrate(np.full(100, 5.0), np.full(100, 0.5), tokens, np.zeros_like(tokens, bool))
    assert many.samples == 90 + 500
    mu, sigma = many.corrected(5.0, 0.5)
    assert many.bounds(mu, sigma, 0.6)[1] < 1000 < many.bounds(mu, sigma, 0.9)[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(19, 60), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([300, FAR]))
def test_quantiles_ascend_and_survive_json(prompts: int, samples: int, seed: int, cap: int) -> None:
    mu, sigma, tokens, cut = biased(prompts, samples, seed, cap)
    cut[0] = False
    calibration = calibrate(mu, sigma, tokens, cut)
    levels = np.linspace(1e-4, 1 - 1e-4, 1000)
    assert (np.diff(calibration.quantile(levels)) >= 0).all()
    assert msgspec.json.decode(msgspec.json.encode(calibration), type=Calibration) == calibration


def test_the_coverage_that_few_prompts_cannot_give_is_refused() -> None:
    calibration = calibrate(*biased(30, 1, seed=6))
    calibration.bounds(5.0, 1.0, 0.9)
    with pytest.raises(CalibrationError, match=r"0\.99 is not known from 30 prompts.*than 200"):
        calibration.bounds(5.0, 1.0, 0.99)
    for coverage in (0.0, 1.0, float("nan")):
        with pytest.raises(CalibrationError, match="above 0 and below 1"):
            calibration.bounds(5.0, 1.0, coverage)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mu": np.full(40, np.nan)}, "prompt 0 has mu nan"),
        ({"sigma": np.zeros(40)}, "sigma.*above 0"),
        ({"mu": np.zeros(41), "sigma": np.ones(41)}, "41 forecasts but 40 prompts"),
        ({"sigma": np.ones(41)}, r"got \(40,\) and \(41,\)"),
        ({"output_tokens": np.full((40, 2), -1)}, "must be positive"),
        ({"output_tokens": np.zeros((40, 2), int)}, "at least one"),
        ({"output_tokens": np.ones((40, 3), int)}, "one shape"),
        ({"censored": np.ones((40, 2), bool)}, "every answer was ended by a cap"),
    ],
)
def test_what_cannot_calibrate_is_refused(change: dict[str, Any], words: str) -> None:
    columns = dict(zip(("mu", "sigma", "output_tokens", "censored"), biased(40, 2, 7), strict=True))
    calibrate(**columns)
    with pytest.raises(CalibrationError, match=words):
        calibrate(**{**columns, **change})


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"18 prompts.*at least 19"):
        calibrate(*biased(18, 5, seed=8))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"shift": float("inf")},
        {"z": [0.0, float("nan")]},
        {"z": [1.0, 0.0]},
        {"z": [0.0]},
        {"probabilities": [0.5, 1.0]},
        {"probabilities": [0.0, 0.5]},
        {"probabilities": [0.6, 0.5]},
        {"probabilities": [], "z": []},
    ],
)
def test_a_calibration_that_is_not_one_is_refused(change: dict[str, Any]) -> None:
    good = {
        "shift": 0.0, "scale": 1.0, "probabilities": [0.4, 0.6], "z": [-0.3, 0.3],
        "prompts": 20, "samples": 20,
    }  # fmt: skip
    msgspec.convert(good, Calibration)
    with pytest.raises(msgspec.ValidationError, match="calibrat"):
        msgspec.convert({**good, **change}, Calibration)
