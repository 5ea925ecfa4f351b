"""Scores against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from predictor.label_fit import fit_labels
from predictor.labels import Labels
from predictor.prior import PriorForecaster
from predictor.scores import (
    CAP_TOKENS,
    Distributions,
    caps,
    covered,
    ends,
    fit_prior,
    kendall_tau,
    mean_nll,
    prior_distributions,
    score,
)
from tests.predictor.training_factories import labels_of, texts

NU = 3.5


def true_forecast(labels: Labels, coverage: float = 0.9) -> Distributions:
    """The fits themselves as forecasts."""
    fitted = fit_labels(labels)
    far = stats.t.ppf(0.5 + coverage / 2, NU) * fitted.sigma
    return Distributions(fitted.mu, fitted.sigma, np.exp(fitted.mu - far), np.exp(fitted.mu + far))


def test_a_perfect_forecast() -> None:
    labels = labels_of(texts(200), samples=20)
    forecast = true_forecast(labels)
    prior = prior_distributions(fit_prior(labels), labels)
    found = score(labels, forecast, prior, forecast.sigma)
    assert (found.prompts, found.r2_mu, found.r2_sigma) == (200, 1.0, 1.0)
    assert found.coverage == pytest.approx(0.9, abs=0.03)
    assert found.nll < found.nll_prior
    assert found.interval_width < found.interval_width_prior
    blind = Distributions(
        np.full(200, forecast.mu.mean()), forecast.sigma, forecast.lower, forecast.upper
    )
    worse = score(labels, blind, prior, np.full(200, fit_labels(labels).sigma.mean()))
    assert worse.r2_mu == pytest.approx(0, abs=0.05)
    assert worse.r2_sigma == pytest.approx(0, abs=1e-9)


def test_nll_counts_prompts_and_not_samples() -> None:
    labels = labels_of(["write a", "write b"], samples=3)
    labels.output_tokens[:] = [[20, 30, 40], [50, 0, 0]]
    labels.censored[:] = [[False, False, True], [False, False, False]]
    mu, sigma = np.array([3.0, 4.0]), np.array([0.5, 0.7])

    def density(x: float, row: int) -> float:
        z = (np.log(x) - mu[row]) / sigma[row]
        return float(stats.t.logpdf(z, NU) - np.log(sigma[row]) - np.log(x))

    cut = float(stats.t.logsf((np.log(40) - 3) / 0.5, NU))
    expected = -((density(20, 0) + density(30, 0) + cut) / 3 + density(50, 1)) / 2
    assert mean_nll(labels, mu, sigma) == pytest.approx(expected)


def test_tau_is_the_mean_over_the_samples() -> None:
    labels = labels_of([f"write {i}" for i in range(4)], samples=2)
    labels.output_tokens[:] = [[1, 4], [2, 3], [3, 2], [4, 0]]
    order = np.array([1.0, 2, 3, 4])
    assert kendall_tau(labels, order) == pytest.approx((1.0 - 1.0) / 2)
    labels.output_tokens[:, 1] = 7
    assert kendall_tau(labels, order) == 1.0
    assert np.isnan(kendall_tau(labels.take([0]), order[:1]))


def test_intervals_end_at_the_cap_and_hold_what_is_cut_there() -> None:
    labels = labels_of(["write a", "write b"], samples=2, cap=100)
    labels.output_tokens[:] = [[100, 40], [100, 9]]
    labels.censored[:] = [[True, False], [True, False]]
    forecast = Distributions(
        np.log([50.0, 50.0]), np.array([0.5, 0.5]), np.array([9.6, 9.6]), np.array([1e300, 80.4])
    )
    assert caps(labels, 7).tolist() == [100, 100]
    lower, upper = ends(forecast, caps(labels, None))
    assert (lower.tolist(), upper.tolist()) == ([9, 9], [100, 81])
    found = score(labels, forecast, forecast, forecast.sigma)
    assert found.coverage == pytest.approx(3 / 4)
    assert found.coverage_due == pytest.approx(1 - 0.05 * 3 / 2), "one of four ends is at the cap"
    assert found.interval_width == found.interval_width_prior == (91 + 72) / 2


def test_an_answer_counts_as_long_as_its_cap_lets_it_be() -> None:
    labels = labels_of(["write a"], samples=2)
    labels.output_tokens[:] = [[70, 40]]
    forecast = Distributions(np.log([50.0]), np.array([0.5]), np.array([0.4]), np.array([60.0]))
    assert covered(labels, forecast, cap_tokens=100).tolist() == [1 / 2]
    assert covered(labels, forecast, cap_tokens=50).tolist() == [1.0]
    assert score(labels, forecast, forecast, forecast.sigma, 0.8, 50).coverage_due == 1.0
    assert score(labels, forecast, forecast, forecast.sigma, 0.8, 100).coverage_due == 0.9


def test_a_cap_that_nobody_names() -> None:
    labels = labels_of(["write a"])
    assert caps(labels, None).tolist() == [CAP_TOKENS]
    assert caps(labels, 50).tolist() == [50]


def test_the_prior_of_an_unknown_model_is_that_of_all() -> None:
    labels = labels_of(texts(100), models=("one", "two"))
    prior = fit_prior(labels, 0.8)
    strange = labels_of(texts(5), models=("three",))
    of_all, known = prior_distributions(prior, strange), prior_distributions(prior, labels)
    one, two = known.mu[0], known.mu[1]
    assert one < of_all.mu[0] < two
    fresh = PriorForecaster(0.8)
    fresh.load_state(prior.state())
    np.testing.assert_allclose(prior_distributions(fresh, strange).upper, of_all.upper)


def test_the_prior_of_labels_forgets_nothing() -> None:
    labels = labels_of(texts(600), samples=20)
    backwards = labels.take(np.arange(len(labels))[::-1])
    first, second = (prior_distributions(fit_prior(part), labels) for part in (labels, backwards))
    np.testing.assert_allclose(first.mu, second.mu, rtol=1e-6)
