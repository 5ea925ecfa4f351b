from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fit import fit
from policies.forecast import DEGREES_OF_FREEDOM as NU
from predictor.drift import SCALE_MIN, drift, log_likelihood


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(0.2, 4), st.floats(0.5, 9))
def test_it_agrees_with_the_maximum_likelihood_fit(
    seed: int, location: float, scale: float, cap: float
) -> None:
    rng = np.random.default_rng(seed)
    z = rng.standard_t(NU, (3, 128))
    cut = z > cap
    residual = location + scale * np.minimum(z, cap)
    weight = rng.uniform(0.2, 2, z.shape)
    found = drift(residual, cut, weight)
    expected = fit(np.exp(residual), cut, weight)
    assert found[0] == pytest.approx(expected[0], abs=0.02 * scale)
    assert found[1] == pytest.approx(expected[1], rel=0.02)


def test_it_survives_ties_and_answers_that_were_all_cut() -> None:
    residual = np.concatenate((np.zeros((1, 32)), np.full((1, 32), 2.0)))
    cut = np.array([[False] * 32, [True] * 32])
    location, scale = drift(residual, cut, np.ones_like(residual))
    assert location[0] == 0
    assert scale[0] == SCALE_MIN
    assert location[1] > 2
    assert np.isfinite([location, scale]).all()


def test_the_likelihood_is_that_of_the_log_t() -> None:
    from scipy import stats

    z, sigma = np.linspace(-8, 8, 33), np.linspace(0.1, 2, 33)
    ended = log_likelihood(z, sigma, np.zeros(33, np.bool_))
    assert ended == pytest.approx(stats.t.logpdf(z, NU) - np.log(sigma))
    beyond = log_likelihood(z, sigma, np.ones(33, np.bool_))
    assert beyond == pytest.approx(stats.t.logsf(z, NU))
