from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from policies import ADMISSIONS, InvalidOptionError, UnknownLengthError, logt
from policies.admission import AMax, AMin, Greedy, Oracle, Quantile
from tests.policies.factories import make_batch

VARIANTS = [
    ("greedy", {}),
    ("a_max", {}),
    ("a_max", {"overdue": "double"}),
    ("a_min", {}),
    ("a_min", {"overdue": "double"}),
    ("quantile", {}),
    ("quantile", {"q": 0.01}),
    ("quantile", {"q": 0.99}),
    ("oracle", {}),
]


def test_every_admission_is_covered() -> None:
    assert {name for name, _ in VARIANTS} == set(ADMISSIONS.names())


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@given(seed=st.integers(0, 100_000))
def test_estimates_lie_above_generated_and_within_the_cap(
    name: str, options: dict[str, object], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    caps = rng.integers(1, 500, 20)
    batch = make_batch(
        max_tokens=caps,
        generated_tokens=(rng.random(20) * caps).astype(np.int64),
        mu=rng.uniform(-1, 9, 20),
        sigma=np.where(rng.random(20) < 0.3, 0, rng.uniform(0, 3, 20)),
        lower=rng.integers(1, 600, 20),
        upper=rng.integers(600, 1000, 20),
        output_tokens=rng.integers(1, 600, 20),
    )
    estimates = ADMISSIONS.build(name, options).estimates(batch)
    assert estimates.dtype == np.int64
    assert (estimates > batch.generated_tokens).all()
    assert (estimates <= batch.max_tokens).all()


def test_greedy_assumes_one_more_token() -> None:
    batch = make_batch(generated_tokens=[0, 7])
    np.testing.assert_array_equal(Greedy().estimates(batch), [1, 8])


def test_bounds_are_the_estimates_until_they_are_reached() -> None:
    batch = make_batch(generated_tokens=[0, 29, 30, 49], lower=30, upper=50)
    np.testing.assert_array_equal(AMin().estimates(batch), [30, 30, 31, 50])
    np.testing.assert_array_equal(AMax().estimates(batch), [50, 50, 50, 50])


def test_an_overdue_request_is_given_as_many_steps_again_by_double() -> None:
    batch = make_batch(generated_tokens=[29, 30, 45, 90], lower=30, max_tokens=100)
    double = AMin(overdue="double")
    np.testing.assert_array_equal(double.estimates(batch), [30, 60, 90, 100])


def test_quantile_is_the_conditional_one_rounded_up() -> None:
    batch = make_batch(mu=5.0, sigma=0.8, generated_tokens=[0, 100, 400])
    estimates = Quantile(q=0.3).estimates(batch)
    exact = logt.conditional_quantile(5.0, 0.8, 2048, [0, 100, 400], 0.3)
    np.testing.assert_array_equal(estimates, np.ceil(exact))


def test_quantile_of_an_exact_forecast_is_that_length() -> None:
    tokens = np.arange(1, 100_001)
    batch = make_batch(mu=np.log(tokens), sigma=0.0, max_tokens=200_000)
    np.testing.assert_array_equal(Quantile().estimates(batch), tokens)
    batch.generated_tokens[:] = tokens - 1
    np.testing.assert_array_equal(Quantile().estimates(batch), tokens)


def test_oracle_needs_the_true_lengths() -> None:
    known = make_batch(output_tokens=[5, 9], generated_tokens=[0, 8])
    np.testing.assert_array_equal(Oracle().estimates(known), [5, 9])
    with pytest.raises(UnknownLengthError, match="simulation only"):
        Oracle().estimates(make_batch(output_tokens=0))


@pytest.mark.parametrize("name", [n for n in ADMISSIONS.names() if n != "oracle"])
def test_other_admissions_never_read_the_true_length(name: str) -> None:
    """I8: what has not finished is unknown."""
    columns: dict[str, ArrayLike] = {"generated_tokens": [0, 50, 900], "lower": 40, "upper": 800}
    admission = ADMISSIONS.build(name)
    known = admission.estimates(make_batch(output_tokens=[60, 70, 1000], **columns))
    np.testing.assert_array_equal(known, admission.estimates(make_batch(**columns)))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match=r"overdue.*'dbl'.*alive, double"):
        AMin(overdue="dbl")
    for q in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidOptionError, match="q is"):
            Quantile(q=q)
