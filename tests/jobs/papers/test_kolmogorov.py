import numpy as np
import pytest
from scipy import special, stats

from jobs.papers.kolmogorov import (
    bootstrap_passes,
    ks_statistics,
    naive_passes,
    whole_tokens,
)
from jobs.papers.length_families import FAMILIES, LOG_SCALE_MIN, NU_GRID, token_scores
from policies.forecast import DEGREES_OF_FREEDOM


def lengths(groups: int = 40, samples: int = 10, seed: int = 3) -> np.ndarray:
    """Groups of whole lengths of different scale and spread, some with ties."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.05, 0.8, (groups, 1))
    logs = rng.uniform(2, 7, (groups, 1)) + spread * rng.standard_t(4, (groups, samples))
    return whole_tokens(np.exp(np.clip(logs, 0, 9)))


def scipy_distribution(name: str, p: np.ndarray):
    """The same distribution from scipy, by the parameters of one group."""
    if name in ("log_t", "log_t_free_nu"):
        nu = p[2] if name == "log_t_free_nu" else DEGREES_OF_FREEDOM
        return lambda x: stats.t.cdf(np.log(x), nu, loc=p[0], scale=p[1])
    if name == "log_normal":
        return stats.lognorm(p[1], scale=np.exp(p[0])).cdf
    if name == "gamma":
        return stats.gamma(p[1], scale=p[0]).cdf
    return stats.weibull_min(p[1], scale=p[0]).cdf


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_and_naive_test_are_those_of_scipy_one_by_one(name):
    family, groups = FAMILIES[name], lengths()
    parameters = family.fit(groups)
    statistics = ks_statistics(family, parameters, groups)
    passes = naive_passes(statistics, groups.shape[1])
    for group, p, distance, passed in zip(groups, parameters, statistics, passes, strict=True):
        expected = stats.kstest(group, scipy_distribution(name, p), method="exact")
        assert distance == pytest.approx(expected.statistic, rel=1e-9)
        assert passed == (expected.pvalue > 0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_fit_is_a_maximum_of_the_likelihood(name):
    family, groups = FAMILIES[name], lengths(20)
    parameters = family.fit(groups)

    def likelihood(p):
        step = 1e-4 * groups
        mass = family.cdf(p, groups + step) - family.cdf(p, groups - step)
        return np.log(mass).sum(axis=1)

    best = likelihood(parameters)
    free = 1 if name == "exponential" else 2
    for column in range(free):
        for factor in (0.97, 1.03):
            other = parameters.copy()
            if name.startswith("log_") and column == 0:
                other[:, 0] += np.log(factor)
            else:
                other[:, column] *= factor
            inside = other[:, 1] >= LOG_SCALE_MIN if name.startswith("log_") else other[:, 1] > 0
            assert (likelihood(other) <= best + 1e-6)[inside].all()


def test_free_nu_is_at_least_as_likely_as_the_fixed_one():
    groups = lengths(30, samples=12)
    free, fixed = FAMILIES["log_t_free_nu"].fit(groups), FAMILIES["log_t"].fit(groups)

    def likelihood(p, nu):
        z = (np.log(groups) - p[:, :1]) / p[:, 1:2]
        return (stats.t.logpdf(z, nu) - np.log(p[:, 1:2])).sum(axis=1)

    assert set(free[:, 2]) <= set(NU_GRID)
    assert (likelihood(free, free[:, 2:]) >= likelihood(fixed, DEGREES_OF_FREEDOM) - 1e-6).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_quantiles_invert_the_cdf_and_draws_follow_it(name):
    family = FAMILIES[name]
    parameters = family.fit(lengths(5))
    q = np.array([0.05, 0.5, 0.9])
    tokens = np.exp(family.log_quantile(parameters, q))
    assert family.cdf(parameters, tokens) == pytest.approx(np.tile(q, (5, 1)), rel=1e-6)
    assert family.survival(parameters, tokens) == pytest.approx(np.tile(1 - q, (5, 1)), rel=1e-6)
    drawn = family.draw(parameters, 4_000, np.random.default_rng(0))
    below = (drawn[:, :, None] <= tokens[:, None, :]).mean(axis=1)
    assert below == pytest.approx(np.tile(q, (5, 1)), abs=0.03)


def test_bootstrap_passes_a_true_family_at_its_level_and_the_naive_test_far_too_often():
    rng = np.random.default_rng(7)
    family = FAMILIES["log_normal"]
    groups = whole_tokens(np.exp(6 + 0.3 * rng.standard_normal((400, 10))))
    fitted = family.fit(groups)
    statistics = ks_statistics(family, fitted, groups)
    corrected = bootstrap_passes(family, fitted, statistics, 10, 99, rng)
    assert corrected.mean() == pytest.approx(0.95, abs=0.035)
    assert naive_passes(statistics, 10).mean() > 0.99


def test_bootstrap_rejects_a_false_family():
    rng = np.random.default_rng(8)
    family = FAMILIES["exponential"]
    groups = whole_tokens(np.exp(6 + 0.1 * rng.standard_normal((50, 10))))
    fitted = family.fit(groups)
    statistics = ks_statistics(family, fitted, groups)
    assert not bootstrap_passes(family, fitted, statistics, 10, 99, rng).any()


def test_scores_are_those_of_the_definition():
    family = FAMILIES["log_normal"]
    parameters, tokens = np.array([[5.0, 0.4]]), np.array([120.0])
    scores = token_scores(family, parameters, tokens)
    z = (np.log([119.5, 120.5]) - 5.0) / 0.4
    assert scores.log_score[0] == pytest.approx(-np.log(special.ndtr(z[1]) - special.ndtr(z[0])))
    # The closed form of a normal's CRPS (Gneiting and Raftery 2007, equation 5).
    y = (np.log(120.0) - 5.0) / 0.4
    exact = 0.4 * (y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / np.sqrt(np.pi))
    assert scores.log_crps[0] == pytest.approx(exact, rel=0.03)


def test_log_score_of_an_unlikely_token_has_a_floor():
    family = FAMILIES["log_normal"]
    scores = token_scores(family, np.array([[5.0, 0.05]]), np.array([15_000.0]))
    assert scores.log_score[0] == pytest.approx(-np.log(1e-12))
