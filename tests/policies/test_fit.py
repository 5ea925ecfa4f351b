from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special, stats

from policies import DEGREES_OF_FREEDOM, Floats
from policies.fit import Bools, fit

NU = DEGREES_OF_FREEDOM
LOG_DENSITY_AT_0 = float(stats.t.logpdf(0, NU))


def sample(
    seed: int, groups: int, size: int, cut_share: float = 0.0
) -> tuple[Floats, Bools, Floats, Floats]:
    """Lengths, whether each was cut, and the true mu and sigma of each group."""
    rng = np.random.default_rng(seed)
    mu, sigma = rng.uniform(2, 8, groups), rng.uniform(0.15, 1.5, groups)
    lengths = np.exp(mu[:, None] + sigma[:, None] * rng.standard_t(NU, (groups, size)))
    limit = np.full((groups, 1), np.inf)
    if cut_share:
        limit = np.exp(mu + sigma * stats.t.ppf(1 - cut_share, NU))[:, None]
    return np.minimum(lengths, limit), lengths > limit, mu, sigma


def log_likelihood(
    lengths: Floats, cut: Bools, weights: Floats, mu: float, log_sigma: float
) -> float:
    """Log-likelihood of one group without the constant term in ln x."""
    r = (np.log(lengths) - mu) / np.exp(log_sigma)
    density = -(NU + 1) / 2 * np.log1p(r**2 / NU) + LOG_DENSITY_AT_0
    terms = np.where(cut, np.log(special.stdtr(NU, -r)), density - log_sigma)
    return float((weights * terms).sum())


def fit_one(lengths: Floats, cut: Bools, weights: Floats) -> tuple[float, float]:
    """The same fit by a general optimiser, from two starts."""
    logs = np.log(lengths)

    def loss(parameters: Floats) -> float:
        return -log_likelihood(lengths, cut, weights, parameters[0], parameters[1])

    ends = [
        optimize.minimize(
            loss,
            [float(logs.mean()), start],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 5000},
        )
        for start in (0.0, -2.0)
    ]
    best = min(ends, key=lambda end: end.fun)
    return best.x[0], float(np.exp(best.x[1]))


@pytest.mark.parametrize("cut_share", [0.0, 0.1, 0.5, 0.8])
def test_fit_finds_the_same_maximum_as_a_general_optimiser(cut_share: float) -> None:
    lengths, cut, _, _ = sample(7, 15, 20, cut_share)
    cut[:, 0] = False
    weights = np.random.default_rng(1).uniform(0.5, 2, lengths.shape)
    mu, sigma = fit(lengths, cut, weights)
    expected = np.array([fit_one(*row) for row in zip(lengths, cut, weights, strict=True)])
    free = expected[:, 1] > 0.06  # where the floor of sigma does not bind
    assert free.sum() >= 10
    np.testing.assert_allclose(mu[free], expected[free, 0], atol=1e-5)
    np.testing.assert_allclose(sigma[free], expected[free, 1], rtol=1e-5)


def test_fit_at_the_floor_still_maximises_over_mu() -> None:
    lengths = np.array([[100.0, 101, 102, 103, 130]])
    cut = np.zeros((1, 5), np.bool_)
    mu, sigma = fit(lengths, cut, sigma_min=0.2)
    assert sigma[0] == pytest.approx(0.2)
    best = optimize.minimize_scalar(
        lambda m: -log_likelihood(lengths[0], cut[0], np.ones(5), m, np.log(0.2)),
        bounds=(4, 5.5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert mu[0] == pytest.approx(best.x, abs=1e-6)


def test_fit_recovers_the_truth_through_heavy_censoring() -> None:
    lengths, cut, mu, sigma = sample(3, 6, 20_000, 0.4)
    found_mu, found_sigma = fit(lengths, cut)
    np.testing.assert_allclose(found_mu, mu, atol=0.06)
    np.testing.assert_allclose(found_sigma, sigma, rtol=0.05)
    blind_mu, blind_sigma = fit(lengths, np.zeros_like(cut))
    assert (blind_mu < mu - 0.1 * sigma).all()
    assert (blind_sigma < 0.8 * sigma).all()


def test_padding_with_zero_weight_changes_nothing() -> None:
    lengths, cut, _, _ = sample(11, 8, 12, 0.2)
    padded = np.hstack([lengths, np.full((8, 5), np.nan)])
    weights = np.hstack([np.ones((8, 12)), np.zeros((8, 5))])
    for pad_cut in (True, False):
        pad = np.full((8, 5), pad_cut)
        found = fit(padded, np.hstack([cut, pad]), weights)
        np.testing.assert_allclose(found, fit(lengths, cut), rtol=1e-7)


def test_a_weight_counts_as_repetition() -> None:
    lengths, cut, _, _ = sample(13, 5, 10, 0.3)
    weights = np.tile([1, 2, 3, 1, 2], (5, 2))
    repeated = fit(np.repeat(lengths, weights[0], axis=1), np.repeat(cut, weights[0], axis=1))
    np.testing.assert_allclose(np.array(fit(lengths, cut, weights)), np.array(repeated), rtol=1e-7)


def test_groups_do_not_influence_each_other() -> None:
    lengths, cut, _, _ = sample(17, 30, 10, 0.3)
    mu, sigma = fit(lengths, cut)
    for i in range(30):
        np.testing.assert_allclose(
            fit(lengths[i : i + 1], cut[i : i + 1]), [mu[i : i + 1], sigma[i : i + 1]], rtol=1e-7
        )


def test_ties_do_not_collapse_sigma() -> None:
    same = np.full((1, 20), 64.0)
    whole = np.zeros((1, 20), np.bool_)
    mu, sigma = fit(same, whole)
    assert mu[0] == pytest.approx(np.log(64))
    assert sigma[0] == pytest.approx(0.05)
    spread = same.copy()
    spread[0, :3] = 900.0
    mu, sigma = fit(spread, whole)
    assert mu[0] == pytest.approx(np.log(64), abs=0.02)
    assert sigma[0] == pytest.approx(np.log(spread).std() * np.sqrt((NU - 2) / NU))


def test_a_group_that_is_all_censored_lies_at_or_beyond_its_limit() -> None:
    lengths = np.array([[512.0] * 20, [512.0, 256.0] + [512.0] * 18])
    mu, sigma = fit(lengths, np.ones_like(lengths, np.bool_))
    assert np.isfinite(mu).all()
    assert np.isfinite(sigma).all()
    assert (mu >= np.log(512)).all()
    assert (mu < np.log(512) + 0.3).all()
    assert (sigma >= 0.05).all()


def test_one_sample_gives_its_own_length() -> None:
    mu, sigma = fit([[300.0]], [[False]])
    assert (mu[0], sigma[0]) == pytest.approx((np.log(300), 0.05))


def test_no_groups_give_no_fits() -> None:
    mu, sigma = fit(np.empty((0, 4)), np.empty((0, 4), np.bool_))
    assert mu.shape == sigma.shape == (0,)


@pytest.mark.parametrize(
    ("samples", "censored", "weights", "message"),
    [
        ([[1.0, 2.0]], [[False]], None, "one shape"),
        ([[1.0], [0.0]], [[False], [False]], None, "group 1 has a sample"),
        ([[1.0], [np.nan]], [[False], [False]], None, "group 1 has a sample"),
        ([[1.0]], [[False]], [[-1.0]], "group 0 has a weight that is negative"),
        ([[1.0], [1.0]], [[False], [False]], [[1.0], [0.0]], "group 1 has a weight sum of 0"),
    ],
)
def test_fit_refuses_bad_input(
    samples: list[list[float]],
    censored: list[list[bool]],
    weights: list[list[float]] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(samples, censored, weights)


def test_fit_refuses_a_floor_of_zero() -> None:
    with pytest.raises(ValueError, match="sigma_min"):
        fit([[1.0]], [[False]], sigma_min=0.0)
