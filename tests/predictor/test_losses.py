"""Losses against scipy, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from predictor.losses import log_survival, mse, nll, oversampling, regression

NU = 3.5
T = np.concatenate([np.linspace(-60, 60, 4001), np.sinh(np.linspace(-12, 24, 2001))])


def test_log_survival_and_its_slope() -> None:
    t = torch.tensor(T, requires_grad=True)
    found = log_survival(t)
    far = T > 4e8  # where scipy's own has no digits left, a straight line goes on
    expected = stats.t.logsf(T[~far], NU)
    np.testing.assert_allclose(found.detach().numpy()[~far], expected, atol=1e-7)
    found.sum().backward()
    assert t.grad is not None
    hazard = -np.exp(stats.t.logpdf(T[~far], NU) - expected)
    np.testing.assert_allclose(t.grad.numpy()[~far], hazard, atol=2e-6)
    slope = np.diff(found.detach().numpy()[T > 1e8][-50:]) / np.diff(np.log(T[T > 1e8][-50:]))
    np.testing.assert_allclose(slope, -NU, rtol=1e-6)


def test_single_precision_keeps_six_digits() -> None:
    found = log_survival(torch.tensor(T, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, stats.t.logsf(T, NU), rtol=3e-6, atol=3e-6)


def test_nll_is_that_of_scipy_with_cut_samples_and_padding() -> None:
    rng = np.random.default_rng(0)
    x, cut = rng.normal(5, 1, (7, 4)), rng.random((7, 4)) < 0.4
    weight = rng.random((7, 4))
    weight[:, 3] = 0
    mu, sigma = rng.normal(5, 1, (2, 7)), rng.uniform(0.1, 2, (2, 7))
    found = nll(*map(torch.tensor, (mu, sigma, x, cut, weight)))
    z = (x - mu[..., None]) / sigma[..., None]
    each = np.where(cut, stats.t.logsf(z, NU), stats.t.logpdf(z, NU) - np.log(sigma)[..., None])
    np.testing.assert_allclose(found.numpy(), -(weight * each).sum(-1), rtol=1e-6)


def test_regression_is_that_of_scipy_with_cut_samples_and_padding() -> None:
    rng = np.random.default_rng(2)
    x, cut = rng.normal(0, 1, (7, 4)), rng.random((7, 4)) < 0.4
    weight = rng.random((7, 4))
    weight[:, 3] = 0
    mu = rng.normal(0, 1, (2, 7))
    found = regression(*map(torch.tensor, (mu, x, cut, weight)))
    missed = x - mu[..., None]
    each = np.where(cut, -2 * stats.norm.logsf(missed), missed**2)
    np.testing.assert_allclose(found.numpy(), (weight * each).sum(-1), rtol=1e-6)


def test_nll_pulls_towards_the_samples_and_beyond_a_cut() -> None:
    sigma = torch.full((1,), 0.5, dtype=torch.float64)
    x, weight = torch.full((1, 1), 5.0, dtype=torch.float64), torch.ones(1, 1)

    def pull(mu: float, *, cut: bool) -> float:
        location = torch.tensor([mu], dtype=torch.float64, requires_grad=True)
        nll(location, sigma, x, torch.tensor([[cut]]), weight).sum().backward()
        assert location.grad is not None
        return -float(location.grad)

    assert pull(4, cut=False) > 0 > pull(6, cut=False)
    assert pull(4, cut=True) > pull(6, cut=True) > 0


def test_the_weight_of_sigma_grows_from_3_to_4() -> None:
    forecast = torch.tensor([1.0]), torch.tensor([2.0])
    label = torch.tensor([0.0]), torch.tensor([1.0])
    for progress, expected in ((0.0, 4.0), (0.5, 4.5), (1.0, 5.0)):
        assert float(mse(forecast, label, progress)) == pytest.approx(expected)


def test_long_and_uncertain_prompts_count_more() -> None:
    mu, sigma = np.array([5.0, 5.6, 6.1, 5.0, 5.0, 6.1]), np.array([0.5, 0.5, 0.5, 1.1, 1.4, 1.1])
    assert oversampling(mu, sigma).tolist() == [1, 1.5, 2, 1.5, 2, 2]
