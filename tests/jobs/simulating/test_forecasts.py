from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cluster.workload import WorkloadError
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.forecasts import (
    ExactForecast,
    Forecasting,
    NoisyForecast,
    OracleForecast,
    PriorForecast,
    RandomForecast,
)
from jobs.simulating.lengths import Lengths, LognormalLengths, LogTLengths
from jobs.simulating.traces import read_trace
from jobs.simulating.truth import Truth
from jobs.simulating.widening import Widening
from policies.batch import Floats
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.logt import quantile
from tests.jobs.simulating.workloads import needs_castillo, truth

DRAWS = 65_536
WIDE = LogTLengths(mu_mean=6.0, mu_std=1.0, sigma_median=0.4, log_sigma_std=0.5)
CAP = 1 << 20


def forecast(
    forecasting: Forecasting, lengths: Lengths = WIDE, max_tokens: int = CAP
) -> tuple[Truth, Floats, Floats]:
    """Requests with their forecasts, learnt from others of the same kind."""
    source = lengths.open(read_trace)
    history = Truth.of(source.sample(DRAWS, np.random.default_rng(1)), max_tokens)
    requests = Truth.of(source.draw(0, DRAWS, np.random.default_rng(2)), max_tokens)
    return requests, *forecasting.learn(history)(requests, np.random.default_rng(3))


def r2(predicted: Floats, true: Floats) -> float:
    return float(1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())


def covered(requests: Truth, mu: Floats, sigma: Floats, coverage: float) -> float:
    tail = (1 - coverage) / 2
    low, high = quantile(mu, sigma, tail), quantile(mu, sigma, 1 - tail)
    return float(((requests.output_tokens >= low) & (requests.output_tokens <= high)).mean())


def test_exact_is_a_point_at_the_length_within_the_cap() -> None:
    requests, mu, sigma = forecast(ExactForecast(), max_tokens=300)
    assert np.exp(mu) == pytest.approx(requests.output_tokens)
    assert requests.output_tokens.max() == 300
    assert not sigma.any()


def test_the_oracle_knows_the_distribution_and_not_the_length() -> None:
    requests, mu, sigma = forecast(OracleForecast())
    assert (mu == requests.mu).all()
    assert (sigma == requests.sigma).all()
    assert covered(requests, mu, sigma, 0.9) == pytest.approx(0.9, abs=0.01)


def test_the_oracle_needs_distributions() -> None:
    with pytest.raises(WorkloadError, match="choose the exact, noisy or prior forecast"):
        forecast(OracleForecast(), LognormalLengths())


@pytest.mark.parametrize("r2_mu", [0.0, 0.3, 0.82, 1.0])
@pytest.mark.parametrize("r2_sigma", [0.1, 0.76, 1.0])
def test_noise_leaves_the_given_r2(r2_mu: float, r2_sigma: float) -> None:
    requests, mu, sigma = forecast(NoisyForecast(r2_mu, r2_sigma, widened=False))
    true_mu, true_sigma = requests.distribution()
    assert r2(mu, true_mu) == pytest.approx(r2_mu, abs=0.01)
    assert r2(np.log(sigma), np.log(true_sigma)) == pytest.approx(r2_sigma, abs=0.01)
    if 0 < r2_mu < 1:
        correlation = np.corrcoef(mu, true_mu)[0, 1]
        assert correlation**2 == pytest.approx(r2_mu, abs=0.01)
        # Calibrated: the regression of the truth on the prediction is the identity.
        assert np.polyfit(mu, true_mu, 1) == pytest.approx([1, 0], abs=0.06)


@pytest.mark.parametrize("r2_mu", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.98])
def test_a_widened_interval_holds_its_coverage(r2_mu: float, coverage: float) -> None:
    requests, mu, sigma = forecast(NoisyForecast(r2_mu, 0.3, coverage=coverage))
    assert covered(requests, mu, sigma, coverage) == pytest.approx(coverage, abs=0.012)


def test_an_unwidened_interval_is_too_narrow() -> None:
    requests, mu, sigma = forecast(NoisyForecast(0.5, 0.5, widened=False))
    assert covered(requests, mu, sigma, 0.9) < 0.75


def test_perfect_noise_is_the_oracle() -> None:
    requests, mu, sigma = forecast(NoisyForecast(1.0, 1.0))
    assert mu == pytest.approx(requests.mu)
    assert sigma == pytest.approx(requests.sigma, rel=1e-3)


def test_lengths_without_distributions_are_predicted_with_the_given_r2() -> None:
    requests, mu, sigma = forecast(NoisyForecast(0.6), LognormalLengths())
    assert r2(mu, np.log(requests.output_tokens)) == pytest.approx(0.6, abs=0.01)
    assert len(set(sigma)) == 1
    assert covered(requests, mu, sigma, 0.9) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("of", [OracleForecast(), NoisyForecast(), ExactForecast()])
def test_random_forecasts_are_others_and_worth_nothing(of: Forecasting) -> None:
    requests, mu, sigma = forecast(RandomForecast(of))
    _, own_mu, own_sigma = forecast(of)
    pairs = zip(mu.tolist(), sigma.tolist(), strict=True)
    assert sorted(pairs) == sorted(zip(own_mu.tolist(), own_sigma.tolist(), strict=True))
    assert abs(np.corrcoef(mu, np.log(requests.output_tokens))[0, 1]) < 0.02
    if not isinstance(of, ExactForecast):
        assert not (mu == own_mu).any()


@given(st.integers(2, 50), st.integers(0, 2**32))
def test_no_request_keeps_its_own_forecast(requests: int, seed: int) -> None:
    given_truth = truth(range(1, requests + 1))
    forecaster = RandomForecast(ExactForecast()).learn(given_truth)
    mu, _ = forecaster(given_truth, np.random.default_rng(seed))
    assert sorted(np.rint(np.exp(mu)).tolist()) == list(range(1, requests + 1))
    assert (np.rint(np.exp(mu)) != given_truth.output_tokens).all()


def test_the_prior_is_one_fit_for_all() -> None:
    requests, mu, sigma = forecast(PriorForecast(by_prompt_length=False))
    assert len(set(mu)) == len(set(sigma)) == 1
    assert mu[0] == pytest.approx(6.0, abs=0.05)
    assert covered(requests, mu, sigma, 0.9) == pytest.approx(0.9, abs=0.03)


def test_the_prior_counts_answers_at_the_cap_as_censored() -> None:
    requests, mu, _ = forecast(PriorForecast(by_prompt_length=False), max_tokens=400)
    assert requests.cut.mean() == pytest.approx(0.5, abs=0.02)
    assert np.exp(mu[0]) == pytest.approx(400, rel=0.1)


def test_the_prior_learns_what_the_prompt_tells() -> None:
    prompts = np.repeat([10, 1000], 5000)
    random = np.random.default_rng(1)
    outputs = np.rint(
        np.where(prompts == 10, 50, 800) * np.exp(0.2 * random.standard_t(NU, 10_000))
    )
    order = random.permutation(10_000)
    history = Truth(
        prompt_tokens=prompts[order],
        max_tokens=np.full(10_000, CAP),
        output_tokens=np.maximum(outputs[order].astype(np.int64), 1),
        mu=None,
        sigma=None,
    )
    mu, sigma = PriorForecast().learn(history)(history, random)
    for prompt_tokens, length in ((10, 50), (1000, 800)):
        at = history.prompt_tokens == prompt_tokens
        assert np.exp(mu[at]) == pytest.approx(length, rel=0.1)
        assert sigma[at] == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("mu_error", [0.0, 0.02, 0.3, 2.0])
@pytest.mark.parametrize("log_sigma_error", [0.0, 0.6])
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_widening_agrees_with_draws(
    mu_error: float, log_sigma_error: float, coverage: float
) -> None:
    random = np.random.default_rng(5)
    noise = random.standard_normal((2, 400_000))
    t = random.standard_t(NU, 400_000)
    sigmas = np.array([0.05, 0.2, 1.0])
    widened = Widening(mu_error, log_sigma_error, coverage)(sigmas)
    for sigma, scale in zip(sigmas, widened, strict=True):
        reach = scale * stats.t(NU).ppf((1 + coverage) / 2)
        distance = sigma * np.exp(log_sigma_error * noise[0]) * t + mu_error * noise[1]
        assert (np.abs(distance) <= reach).mean() == pytest.approx(coverage, abs=0.005)


def test_widening_without_errors_changes_nothing() -> None:
    sigmas = np.array([0.05, 0.3, 2.0])
    assert Widening(0.0, 0.0, 0.9)(sigmas) == pytest.approx(sigmas, rel=1e-6)


def test_widening_of_a_point_is_the_normal_interval() -> None:
    scale = Widening(0.7, 0.0, 0.9)(np.zeros(1))
    assert scale[0] * stats.t(NU).ppf(0.95) == pytest.approx(0.7 * stats.norm.ppf(0.95), rel=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoisyForecast(1.1), "r2_mu is 1.1"),
        (lambda: NoisyForecast(0.5, -0.1), "r2_sigma is -0.1"),
        (lambda: NoisyForecast(0.5, float("nan")), "r2_sigma is nan"),
        (lambda: NoisyForecast(coverage=1), "coverage is 1"),
    ],
)
def test_figures_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        make()


@needs_castillo
def test_a_noisy_forecast_of_real_answers_is_calibrated() -> None:
    lengths = CastilloLengths()
    requests, mu, sigma = forecast(NoisyForecast(0.7, 0.4), lengths, max_tokens=4096)
    true_mu, _ = requests.distribution()
    assert r2(mu, true_mu) == pytest.approx(0.7, abs=0.01)
    assert covered(requests, mu, sigma, 0.9) == pytest.approx(0.9, abs=0.02)
