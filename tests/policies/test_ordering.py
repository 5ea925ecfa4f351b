from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from policies import (
    DEGREES_OF_FREEDOM,
    ORDERINGS,
    InvalidOptionError,
    QueueState,
    RequestBatch,
    UnknownLengthError,
)
from policies.ordering import (
    Ageing,
    Fcfs,
    KvVolume,
    LowerBound,
    Oracle,
    OracleVolume,
    ScoreOrdering,
    Sept,
    Sjf,
    Tie,
    UpperBound,
)
from tests.policies.factories import make_batch

EMPTY_QUEUE = QueueState(waiting=0, slots=64)
LONG_QUEUE = QueueState(waiting=64_000, slots=64)
SCORED = [name for name in ORDERINGS.names() if name != "fcfs"]


def scored(name: str, **options: float) -> ScoreOrdering:
    ordering = ORDERINGS.build(name, options)
    assert isinstance(ordering, ScoreOrdering)
    return ordering


def random_batch(seed: int, count: int) -> RequestBatch:
    rng = np.random.default_rng(seed)
    return make_batch(
        prompt_tokens=rng.integers(1, 3000, count),
        arrival_s=rng.uniform(0, 600, count),
        mu=rng.uniform(2, 8, count),
        sigma=rng.uniform(0.05, 1.5, count),
        lower=rng.integers(1, 100, count),
        upper=rng.integers(100, 2000, count),
        output_tokens=rng.integers(1, 2000, count),
    )


@pytest.mark.parametrize(
    ("mu", "sigma", "at_tenth", "at_half"),
    [
        (3, 0.1, 23.00, 33.67),
        (4, 0.5, 100.54, 204.37),
        (5, 0.2, 182.21, 288.42),
        (5, 0.8, 367.21, 811.83),
        (6, 1.0, 841.16, 1659.35),
        (7, 0.3, 1348.99, 2140.85),
    ],
)
def test_tie_scores_agree_with_the_published_table(
    mu: float, sigma: float, at_tenth: float, at_half: float
) -> None:
    batch = make_batch(mu=mu, sigma=sigma, max_tokens=2048)
    assert Tie().scores(batch, EMPTY_QUEUE)[0] == pytest.approx(at_tenth, abs=0.0051)
    assert Tie().scores(batch, LONG_QUEUE)[0] == pytest.approx(at_half, abs=0.0051)


@pytest.mark.parametrize(
    ("waiting", "slots", "beta"),
    [(0, 64, 0.1), (64, 64, 0.1), (192, 64, 0.3), (640, 64, 0.5), (5, 0, 0.5), (0, 0, 0.1)],
)
def test_beta_follows_the_queue(waiting: int, slots: int, beta: float) -> None:
    assert Tie().beta(QueueState(waiting, slots)) == pytest.approx(beta)


def test_tie_without_tail_is_sept() -> None:
    batch = random_batch(1, 50)
    without_tail = Tie(beta_min=0, beta_max=0)
    np.testing.assert_array_equal(
        without_tail.keys(batch, LONG_QUEUE), Sept().keys(batch, LONG_QUEUE)
    )


def test_fcfs_is_by_arrival() -> None:
    batch = random_batch(2, 50)
    np.testing.assert_array_equal(Fcfs().keys(batch, EMPTY_QUEUE), batch.arrival_s)


def test_sjf_is_by_the_capped_median() -> None:
    batch = make_batch(mu=[3.0, 9.0], sigma=[2.0, 0.1], max_tokens=1000)
    np.testing.assert_allclose(Sjf().scores(batch, EMPTY_QUEUE), [math.exp(3), 1000])


def test_tie_prefers_the_certain_of_two_equal_medians() -> None:
    batch = make_batch(mu=[5.0, 5.0], sigma=[1.0, 0.1])
    assert np.diff(Tie().keys(batch, EMPTY_QUEUE))[0] < 0


@pytest.mark.parametrize(("queue", "beta"), [(EMPTY_QUEUE, 0.1), (LONG_QUEUE, 0.5)])
def test_kv_volume_agrees_with_equally_likely_lengths(queue: QueueState, beta: float) -> None:
    points = 100_000
    t = stats.t.ppf((np.arange(points) + 0.5) / points, DEGREES_OF_FREEDOM)
    length = np.minimum(np.exp(5.0 + 0.7 * t), 800)
    volume = length * (900 + length / 2)
    batch = make_batch(mu=5.0, sigma=0.7, max_tokens=800, prompt_tokens=900)
    expected = volume.mean() + beta * volume[int(0.9 * points) :].mean()
    assert KvVolume().scores(batch, queue)[0] == pytest.approx(expected, rel=1e-4)


def test_kv_volume_of_an_exact_forecast_is_the_oracle_volume() -> None:
    batch = make_batch(
        mu=np.log([20, 300]), sigma=0, output_tokens=[20, 300], prompt_tokens=[500, 0]
    )
    expected_only = KvVolume(beta_min=0, beta_max=0)
    np.testing.assert_allclose(
        expected_only.scores(batch, EMPTY_QUEUE), OracleVolume().scores(batch, EMPTY_QUEUE)
    )
    np.testing.assert_array_equal(OracleVolume().scores(batch, EMPTY_QUEUE), [20 * 510, 300 * 150])


def test_bounds_are_limited_by_the_cap() -> None:
    batch = make_batch(lower=[5, 90], upper=[60, 900], max_tokens=80)
    np.testing.assert_array_equal(LowerBound().scores(batch, EMPTY_QUEUE), [5, 80])
    np.testing.assert_array_equal(UpperBound().scores(batch, EMPTY_QUEUE), [60, 80])


@pytest.mark.parametrize("ordering", [Oracle(), OracleVolume()])
def test_oracles_refuse_unknown_lengths(ordering: ScoreOrdering) -> None:
    with pytest.raises(UnknownLengthError, match=r"1 of 3 .* simulation only"):
        ordering.keys(make_batch(output_tokens=[4, 0, 5]), EMPTY_QUEUE)


@pytest.mark.parametrize("name", [n for n in ORDERINGS.names() if not n.startswith("oracle")])
def test_other_orderings_never_read_the_true_length(name: str) -> None:
    """I8: what has not finished is unknown."""
    known, unknown = random_batch(3, 40), random_batch(3, 40)
    unknown.output_tokens[:] = 0
    ordering = ORDERINGS.build(name)
    np.testing.assert_array_equal(
        ordering.keys(known, LONG_QUEUE), ordering.keys(unknown, LONG_QUEUE)
    )


@pytest.mark.parametrize("name", SCORED)
@given(seed=st.integers(0, 10_000), wait_s=st.floats(0, 3000))
def test_static_keys_order_as_aged_scores_at_every_instant(
    name: str, seed: int, wait_s: float
) -> None:
    batch = random_batch(seed, 12)
    ordering = scored(name, gamma=0.8, tau_s=20.0)
    now = batch.arrival_s.max() + wait_s
    aged = np.log(ordering.scores(batch, LONG_QUEUE)) + math.log(0.8) * (
        (now - batch.arrival_s) / 20.0
    )
    keys = ordering.keys(batch, LONG_QUEUE)
    np.testing.assert_allclose(np.diff(keys), np.diff(aged), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCORED)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.1, 1), tau_s=st.floats(0.1, 1e4))
def test_later_arrivals_with_larger_scores_never_overtake(
    name: str, seed: int, gamma: float, tau_s: float
) -> None:
    """I7: a waiting request's rank never worsens relative to those."""
    batch = random_batch(seed, 12)
    ordering = scored(name, gamma=gamma, tau_s=tau_s)
    scores, keys = ordering.scores(batch, LONG_QUEUE), ordering.keys(batch, LONG_QUEUE)
    earlier = batch.arrival_s[:, None] <= batch.arrival_s
    smaller = scores[:, None] <= scores
    before = keys[:, None] <= keys
    assert before[earlier & smaller].all()


@pytest.mark.parametrize("name", SCORED)
def test_ageing_off_leaves_the_order_of_scores(name: str) -> None:
    batch = random_batch(5, 200)
    ordering = scored(name, gamma=1.0)
    keys, scores = ordering.keys(batch, LONG_QUEUE), ordering.scores(batch, LONG_QUEUE)
    np.testing.assert_array_equal(
        np.argsort(keys, kind="stable"), np.argsort(scores, kind="stable")
    )


def test_twice_the_score_overtakes_after_197_s() -> None:
    ageing = Ageing()
    for lead_s, overtakes in ((197.0, False), (198.0, True)):
        long, short = ageing.aged(np.array([200.0, 100.0]), np.array([0.0, lead_s]))
        assert (long < short) == overtakes


@given(shift_s=st.floats(-1e6, 1e6), seed=st.integers(0, 1000))
def test_the_origin_of_the_clock_does_not_matter(shift_s: float, seed: int) -> None:
    batch = random_batch(seed, 10)
    assume(np.diff(np.sort(Tie().keys(batch, EMPTY_QUEUE))).min() > 1e-6)
    before = np.argsort(Tie().keys(batch, EMPTY_QUEUE))
    batch.arrival_s[:] += shift_s
    np.testing.assert_array_equal(np.argsort(Tie().keys(batch, EMPTY_QUEUE)), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"gamma": 1.1}, "gamma is 1.1"),
        ({"tau_s": 0.0}, "tau_s is 0.0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"beta_min": -0.1}, "beta_min is -0.1"),
        ({"beta_min": 0.6}, "beta_min is 0.6 and beta_max 0.5"),
        ({"beta_per_load": 0.0}, "beta_per_load is 0.0"),
    ],
)
def test_orderings_refuse_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        Tie(**options)
