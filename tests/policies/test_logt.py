from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from policies import DEGREES_OF_FREEDOM, logt

NU = DEGREES_OF_FREEDOM
DENSITY_AT_0 = float(stats.t.pdf(0, NU))

# (mu, sigma, E[X~], CVaR) at alpha 0.9 and cap 2048, to the two decimals they are known with.
TABLE = [
    (3, 0.1, 20.34, 26.67),
    (4, 0.5, 74.58, 259.58),
    (5, 0.2, 155.66, 265.52),
    (5, 0.8, 256.06, 1111.55),
    (6, 1.0, 636.62, 2045.46),
    (7, 0.3, 1151.03, 1979.63),
]


def quad_moments(mu: float, sigma: float, cap: float, alpha: float) -> list[float]:
    """`logt.Moments` of one request by adaptive quadrature over t, piece by piece."""
    z, z_var = (math.log(cap) - mu) / sigma, float(special.stdtrit(NU, alpha))
    beyond = float(special.stdtr(NU, -z))

    def integral(power: int, low: float, high: float) -> float:
        if high <= low:
            return 0.0
        inner = [p for p in (-100, -10, -3, 0, 3, 10, 30, 100, 300, 1000) if low < p < high]
        edges = [low, *inner, high]
        return sum(
            integrate.quad(
                lambda t: (
                    math.exp(power * (mu - math.log(cap) + sigma * t))
                    * DENSITY_AT_0
                    * (1 + t * t / NU) ** (-(NU + 1) / 2)
                ),
                a,
                b,
                epsabs=0,
                epsrel=1e-11,
                limit=300,
            )[0]
            for a, b in itertools.pairwise(edges)
        )

    rows = []
    for power in (1, 2):
        body = integral(power, -np.inf, min(z, z_var))
        tail = integral(power, z_var, z)
        mean = body + tail + beyond
        conditional = (tail + beyond) / (1 - alpha) if z > z_var else 1.0
        rows.append((cap**power * mean, cap**power * conditional))
    return [rows[0][0], rows[1][0], rows[0][1], rows[1][1]]


@pytest.mark.parametrize(("mu", "sigma", "mean", "cvar"), TABLE)
def test_moments_agree_with_the_published_table(
    mu: float, sigma: float, mean: float, cvar: float
) -> None:
    found = logt.moments(mu, sigma, 2048, 0.9)
    assert found.mean == pytest.approx(mean, abs=0.0051)
    assert found.tail_mean == pytest.approx(cvar, abs=0.0051)


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_moments_agree_with_adaptive_quadrature(alpha: float) -> None:
    grid = np.array(
        list(
            itertools.product(
                (0.0, 2.2, 5.0, 9.0), (1e-3, 0.05, 0.4, 1.1, 2.5), (1, 30, 700, 32768)
            )
        )
    )
    mu, sigma, cap = grid.T
    found = np.array(logt.moments(mu, sigma, cap, alpha))
    expected = np.array([quad_moments(m, s, c, alpha) for m, s, c in grid]).T
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_moments_of_a_point_mass_are_exact() -> None:
    found = logt.moments([0.0, np.log(50), 9.0], 0.0, 100)
    value = np.array([1.0, 50.0, 100.0])
    np.testing.assert_allclose(found, [value, value**2, value, value**2], rtol=1e-14)


def test_moments_stay_finite_for_absurd_forecasts() -> None:
    found = np.array(logt.moments([800.0, -700.0, 5.0, 5.0], [0.1, 3.0, 1e300, 1e-300], 100))
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(100)
    assert found[0, 3] == pytest.approx(100)


@given(
    mu=st.floats(0, 9),
    sigma=st.floats(0, 2.5),
    cap=st.integers(1, 32768),
    prompt=st.integers(0, 4000),
)
def test_volume_moments_bound_each_other(mu: float, sigma: float, cap: int, prompt: int) -> None:
    m = logt.moments(mu, sigma, cap)
    slack = 1 + 1e-9
    assert 0 < m.mean <= m.tail_mean * slack
    assert m.tail_mean <= cap * slack
    assert m.mean**2 <= m.second * slack
    assert m.tail_mean**2 <= m.tail_second * slack
    assert prompt * m.mean + m.second / 2 <= (prompt * m.tail_mean + m.tail_second / 2) * slack


def test_cvar_of_a_volume_agrees_with_equally_likely_points() -> None:
    points = 200_000
    draws = np.exp(5.5 + 0.9 * special.stdtrit(NU, (np.arange(points) + 0.5) / points))
    length = np.sort(np.minimum(draws, 1500))
    volume = length * (300 + length / 2)
    m = logt.moments(5.5, 0.9, 1500)
    assert 300 * m.mean + m.second / 2 == pytest.approx(volume.mean(), rel=1e-4)
    top = volume[int(0.9 * points) :]
    assert 300 * m.tail_mean + m.tail_second / 2 == pytest.approx(top.mean(), rel=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 511, 512, 513, 1024, 1025])
def test_a_request_scores_the_same_in_any_company(count: int) -> None:
    rng = np.random.default_rng(count)
    mu, sigma = rng.uniform(0, 9, count), rng.uniform(0, 2.5, count)
    cap = rng.integers(1, 5000, count)
    together = np.array(logt.moments(mu, sigma, cap))
    assert together.shape == (4, count)
    for i in {0, 1, count // 2, count - 2, count - 1} & set(range(count)):
        alone = np.array(logt.moments(mu[i], sigma[i], cap[i]))
        assert (alone == together[:, i]).all()
        few = np.array(logt.moments(mu[i:][:5], sigma[i:][:5], cap[i:][:5]))
        assert (few == together[:, i:][:, :5]).all()


def test_moments_broadcast() -> None:
    found = logt.moments(np.zeros((3, 1)), np.array([0.1, 0.2]), 100)
    assert all(row.shape == (3, 2) for row in found)
    assert logt.moments(1.0, 0.1, 100).mean.shape == ()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_moments_refuse_a_level_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        logt.moments(5.0, 1.0, 100, alpha)


@given(mu=st.floats(0, 9), sigma=st.floats(0.01, 2.5), q=st.floats(0.001, 0.999))
def test_quantile_inverts_the_cdf(mu: float, sigma: float, q: float) -> None:
    tokens = logt.quantile(mu, sigma, q)
    assert logt.cdf(mu, sigma, tokens) == pytest.approx(q, rel=1e-7)
    assert logt.survival(mu, sigma, tokens) == pytest.approx(1 - q, rel=1e-7)


def test_distribution_of_a_point_mass() -> None:
    at = [49.0, 50.0, 51.0]
    np.testing.assert_array_equal(logt.cdf(np.log(50), 0.0, at), [0, 1, 1])
    np.testing.assert_array_equal(logt.survival(np.log(50), 0.0, at), [1, 0, 0])
    assert logt.quantile(np.log(50), 0.0, 0.1) == pytest.approx(50)


def test_survival_keeps_its_digits_far_in_the_tail() -> None:
    """Against the integral of the density's power law, whose first correction is 1e-6 here."""
    z = math.log(32768) / 0.01
    power_law = DENSITY_AT_0 * NU ** ((NU + 1) / 2) * z**-NU / NU
    assert logt.survival(0.0, 0.01, 32768) == pytest.approx(power_law, rel=1e-5)
    assert power_law < 1e-8


@given(
    mu=st.floats(0, 9),
    sigma=st.floats(0, 2.5),
    cap=st.integers(1, 32768),
    share=st.floats(0, 1, exclude_max=True),
    q=st.floats(0.01, 0.99),
)
def test_conditional_quantile_lies_between_generated_and_cap(
    mu: float, sigma: float, cap: int, share: float, q: float
) -> None:
    generated = int(share * cap)
    tokens = logt.conditional_quantile(mu, sigma, cap, generated, q)
    assert generated < tokens <= cap


@given(
    mu=st.floats(2, 7),
    sigma=st.floats(0.05, 2),
    generated=st.integers(0, 500),
    q=st.floats(0.01, 0.99),
)
def test_conditional_quantile_splits_what_is_left(
    mu: float, sigma: float, generated: int, q: float
) -> None:
    tokens = logt.conditional_quantile(mu, sigma, 1e30, generated, q)
    left = logt.survival(mu, sigma, tokens) / logt.survival(mu, sigma, generated)
    assert left == pytest.approx(1 - q, rel=1e-6)


def test_conditional_quantile_of_nothing_generated_is_the_quantile() -> None:
    for q in (0.1, 0.5, 0.9):
        found = logt.conditional_quantile(5.0, 0.7, 10_000, 0, q)
        np.testing.assert_allclose(found, logt.quantile(5.0, 0.7, q))


def test_conditional_quantile_agrees_with_the_t_distribution() -> None:
    """Within 1e-9 of scipy's, wherever the request stands in its distribution."""
    z = np.concatenate((np.linspace(-30, 30, 601), 10.0 ** np.arange(2, 6)))
    for q in (1e-6, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-9):
        found = logt.conditional_quantile(1.0, 1e-6, 1e30, np.exp(1 + 1e-6 * z), q)
        at = (np.log(np.exp(1 + 1e-6 * z)) - 1) / 1e-6
        t = -special.stdtrit(NU, (1 - q) * special.stdtr(NU, -at))
        np.testing.assert_allclose((np.log(found) - 1) / 1e-6, t, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 7, 600])
def test_a_request_is_estimated_the_same_in_any_company(count: int) -> None:
    rng = np.random.default_rng(count)
    mu, sigma = rng.uniform(0, 9, count), rng.uniform(0, 2.5, count)
    cap = rng.integers(2, 5000, count)
    generated = (rng.random(count) * cap).astype(np.int64)
    together = logt.conditional_quantile(mu, sigma, cap, generated, 0.4)
    alone = [
        float(logt.conditional_quantile(*one, 0.4))
        for one in zip(mu, sigma, cap, generated, strict=True)
    ]
    assert alone == together.tolist()


def test_an_outlived_point_mass_gives_one_token_more() -> None:
    mu = np.log(50)
    found = logt.conditional_quantile(mu, 0.0, 100, [0, 49, 50, 70, 99], 0.5)
    np.testing.assert_allclose(found, [50, 50, 51, 71, 100])


def left_by_quadrature(mu: float, sigma: float, cap: float, done: float, power: int) -> float:
    """E[(X~ - done)**power | X~ > done] over s, in pieces, by adaptive quadrature."""
    z_done, z_cap = (math.log(done) - mu) / sigma, (math.log(cap) - mu) / sigma
    alive = float(special.stdtr(NU, -z_done))
    edges = np.linspace(math.asinh(z_done), math.asinh(z_cap), 40)
    mass = sum(
        integrate.quad(
            lambda s: (
                (math.exp(mu + sigma * math.sinh(s)) - done) ** power
                * stats.t.pdf(math.sinh(s), NU)
                * math.cosh(s)
            ),
            a,
            b,
            epsrel=1e-11,
        )[0]
        for a, b in itertools.pairwise(edges)
    )
    return (mass + (cap - done) ** power * float(special.stdtr(NU, -z_cap))) / alive


@pytest.mark.parametrize(
    ("mu", "sigma", "cap", "done"),
    [
        (5, 0.5, 2048, 1),
        (5, 0.5, 2048, 150),
        (5, 0.5, 2048, 2000),
        (3, 0.2, 512, 100),
        (7, 1, 4096, 64),
    ],
)
def test_what_is_left_agrees_with_adaptive_quadrature(
    mu: float, sigma: float, cap: int, done: int
) -> None:
    left = logt.moments([mu], [sigma], [cap], generated=[done])
    assert left.mean[0] == pytest.approx(left_by_quadrature(mu, sigma, cap, done, 1), rel=1e-5)
    assert left.second[0] == pytest.approx(left_by_quadrature(mu, sigma, cap, done, 2), rel=1e-4)
    # The tail beyond the conditional VaR is what is left, beyond it, of those that get there.
    var = float(logt.conditional_quantile([mu], [sigma], [cap], [done], 0.9)[0])
    expected = cap - done
    if var < cap:
        expected = var - done + left_by_quadrature(mu, sigma, cap, var, 1)
    assert left.tail_mean[0] == pytest.approx(expected, rel=1e-5)


def test_who_goes_on_has_more_to_come_the_less_certain_he_was() -> None:
    done = np.array([0, 50, 150, 400, 1000])
    certain, vague = (
        logt.moments(np.full(5, 5.0), np.full(5, s), np.full(5, 4096), generated=done).mean
        for s in (0.1, 0.8)
    )
    assert (np.diff(certain[:3]) < 0).all()
    assert (np.diff(vague[2:]) > 0).all()
    assert (certain[1:] < vague[1:]).all()


def test_an_outlived_point_mass_has_one_token_more_to_come() -> None:
    left = logt.moments(np.log([50.0, 50.0]), [0.0, 0.0], [100, 100], generated=[20, 70])
    np.testing.assert_allclose(left.mean, [30, 1])
    np.testing.assert_allclose(left.tail_mean, [30, 1])
    np.testing.assert_allclose(left.second, [900, 1])
