"""A network in service: its intervals hold, and it is served only while it forecasts well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.conformal import CalibrationError
from predictor.watch import SPANS, WINDOW_OUTCOMES, ForecastWatch, WatchStateError
from tests.predictor.streams import (
    CAP,
    MU,
    exchanged,
    feed,
    inside,
    reversed_order,
    served_shortest_first,
    stream,
    watched,
)

SEEDS = pytest.mark.parametrize("seed", range(3))
A_FEW_HUNDRED = 600
GOOD: dict[str, Any] = {}
WEAK: dict[str, Any] = {"r2_mu": 0.15, "sigma_noise": 0.1}


@SEEDS
@pytest.mark.parametrize("kind", [GOOD, WEAK], ids=["good", "weak"])
def test_a_useful_network_is_trusted(kind: dict[str, Any], seed: int) -> None:
    watch, lost, *_ = watched(stream(4000, seed, **kind))
    assert lost == []
    stats = watch.stats()
    assert stats.trusted
    assert stats.reason == ""
    assert stats.outcomes == WINDOW_OUTCOMES
    assert stats.gain > 0
    assert stats.rank > 0.05
    assert abs(stats.coverage - 0.9) < 0.05


@SEEDS
@pytest.mark.parametrize("slots", [16, 64, 512])
@pytest.mark.parametrize("kind", [GOOD, WEAK], ids=["good", "weak"])
def test_a_useful_network_is_trusted_where_its_own_order_hides_its_use(
    kind: dict[str, Any], slots: int, seed: int
) -> None:
    _, lost, *_ = watched(served_shortest_first(stream(4000, seed, **kind), slots))
    assert lost == []


def test_ranks_mislead_where_short_forecasts_go_first() -> None:
    answers = stream(4000, seed=0)
    by_chance = watched(answers.take(np.arange(2048)))[0].stats()
    shortest_first = served_shortest_first(answers, slots=256).take(np.arange(2048))
    assert by_chance.rank > 0.4
    assert watched(shortest_first)[0].stats().rank < 0.1


@SEEDS
def test_a_network_that_knows_nothing_is_noticed(seed: int) -> None:
    watch, lost, regained, _ = watched(exchanged(stream(4000, seed)))
    assert len(lost) == 1
    assert SPANS[0] <= lost[0] <= A_FEW_HUNDRED
    assert regained == []
    stats = watch.stats()
    assert (stats.trusted, stats.fallbacks) == (False, 1)
    assert "the prior was the better forecaster" in stats.reason
    assert stats.gain < -0.1
    assert abs(stats.rank) < 0.1


@SEEDS
def test_a_network_that_ranks_in_reverse_is_noticed_at_once(seed: int) -> None:
    watch, lost, *_ = watched(reversed_order(stream(4000, seed)))
    assert lost == [SPANS[0]]
    assert watch.stats().rank < -0.3


@SEEDS
@pytest.mark.parametrize("spoil", [exchanged, reversed_order])
def test_a_network_that_turns_bad_is_noticed(spoil: Any, seed: int) -> None:
    _, lost, regained, _ = watched(spoil(stream(4000, seed), 2000))
    assert len(lost) == 1
    assert 2000 < lost[0] <= 2000 + A_FEW_HUNDRED
    assert regained == []


@SEEDS
def test_a_network_that_turns_good_returns(seed: int) -> None:
    good = stream(4000, seed)
    rows = np.arange(4000)
    rows[:2000] = np.roll(rows[:2000], 1)
    spoilt = replace(good, mu=good.mu[rows], sigma=good.sigma[rows])
    _, lost, regained, _ = watched(spoilt)
    assert len(lost) == len(regained) == 1
    assert 2000 < regained[0] <= 2000 + A_FEW_HUNDRED


@pytest.mark.parametrize("kind", [GOOD, WEAK], ids=["good", "weak"])
@pytest.mark.parametrize("factor", [3.0, 0.5])
def test_lengths_that_all_change_cost_no_trust_and_little_coverage(
    factor: float, kind: dict[str, Any]
) -> None:
    streams = [stream(4000, seed, factor=factor, factor_from=2000, **kind) for seed in range(3)]
    runs = [watched(answers) for answers in streams]
    for run in runs:
        assert run.lost == []
        assert np.sign(run.watch.stats().shift) == np.sign(np.log(factor))
    held = np.mean([run.inside for run in runs], axis=0)
    assert held[512:2000].mean() == pytest.approx(0.9, abs=0.02)
    unwatched = [inside(ForecastWatch(answers.calibration), answers) for answers in streams]
    assert np.mean(unwatched, axis=0)[2000:].mean() < 0.87
    assert held[2000 + 128 : 2000 + 384].mean() >= 0.87
    assert held[2000 + 384 :].mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_each_end_leaves_out_its_share_although_the_table_is_wrong(coverage: float) -> None:
    answers = stream(8000, seed=1)
    z = np.array(answers.calibration.z)
    wrong = msgspec.structs.replace(
        answers.calibration, z=np.where(z < 0, 0.4 * z, 1.7 * z).tolist()
    )
    watch = ForecastWatch(wrong, coverage)
    outside = []
    for start in range(0, 8000, 32):
        rows = slice(start, start + 32)
        _, _, lower, upper = watch.forecasts(answers.mu[rows], answers.sigma[rows], CAP)
        tokens = answers.tokens[rows]
        outside.append(((tokens < lower).mean(), (tokens > upper).mean()))
        feed(watch, answers, start, start + 32)
    tail = (1 - coverage) / 2
    assert np.mean(outside[32:], axis=0) == pytest.approx([tail, tail], abs=0.015)


def test_an_answer_ended_by_its_cap_is_inside_if_the_interval_ends_there() -> None:
    watch = ForecastWatch(stream(64, seed=0).calibration)
    one = np.ones(1)

    def coverage_of(mu: float, tokens: int, censored: bool, cap: int) -> float:
        fresh = ForecastWatch(watch.state().calibration)
        fresh.observe(mu * one, 0.3 * one, MU * one, one, [tokens], [censored], [cap])
        return fresh.stats().coverage

    assert coverage_of(9.0, 100, True, 100) == 1.0
    assert coverage_of(2.0, 100, True, 100) == 0.0
    assert coverage_of(4.6, 100, False, 0) == 1.0
    # Cut before its cap: what it would have come to is not known, unless it was too long already.
    assert np.isnan(coverage_of(4.6, 100, True, 4000))
    assert np.isnan(coverage_of(9.0, 100, True, 0))
    assert coverage_of(2.0, 100, True, 4000) == 0.0


def test_answers_that_were_cut_do_not_pull_lengths_down() -> None:
    answers = stream(4000, seed=2)
    watch = ForecastWatch(answers.calibration)
    cap = 200
    assert 0.3 < (answers.tokens > cap).mean() < 0.7
    tokens = np.minimum(answers.tokens, cap)
    for start in range(0, 2048, 64):
        rows, same = slice(start, start + 64), np.ones(64)
        watch.observe(
            answers.mu[rows], answers.sigma[rows], MU * same, 0.95 * same,
            tokens[rows], tokens[rows] >= cap, cap * same,
        )  # fmt: skip
    stats = watch.stats()
    assert stats.trusted
    assert abs(stats.shift) < 0.35
    assert 0.7 < stats.scale < 1.4


@settings(max_examples=100, deadline=None)
@given(st.floats(-50, 50), st.floats(1e-6, 50), st.integers(0, 1 << 24))
def test_whatever_a_network_says_its_interval_is_one(mu: float, sigma: float, cap: int) -> None:
    watch = ForecastWatch(stream(64, seed=0).calibration)
    served = watch.forecasts([mu], [sigma], [cap])
    assert np.isfinite([served.mu, served.sigma]).all()
    assert 1 <= served.lower[0] <= served.upper[0] <= (cap or 1 << 24)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 300), max_size=6))
def test_any_batches_leave_a_watch_that_serves(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    watch = ForecastWatch(stream(64, seed=0).calibration)
    for size in sizes:
        tokens = rng.integers(1, 1 << 24, size)
        mu, sigma = rng.uniform(-50, 50, (2, size)), np.exp(rng.uniform(-20, 4, (2, size)))
        watch.observe(
            mu[0], sigma[0], mu[1], sigma[1], tokens, rng.random(size) < 0.5,
            rng.choice([0, 1, 5000, 1 << 24], size),
        )  # fmt: skip
    stats = watch.stats()
    assert stats.outcomes == min(sum(sizes), WINDOW_OUTCOMES)
    assert np.isfinite([stats.shift, stats.scale]).all()
    assert stats.scale > 0
    served = watch.forecasts(np.full(5, 5.0), np.full(5, 0.5), np.full(5, 100))
    assert ((served.lower >= 1) & (served.lower <= served.upper) & (served.upper <= 100)).all()


@pytest.mark.parametrize("spoil", [lambda answers: answers, exchanged])
def test_a_watch_goes_on_where_its_state_was_taken(spoil: Any) -> None:
    answers = spoil(stream(4000, seed=0))
    whole, first = ForecastWatch(answers.calibration), ForecastWatch(answers.calibration)
    feed(whole, answers, 0, 1000)
    feed(first, answers, 0, 1000)
    second = ForecastWatch(answers.calibration)
    second.load_state(msgspec.json.decode(msgspec.json.encode(first.state())))
    assert second.state() == whole.state()
    for start in range(1000, 2000, 24):
        feed(whole, answers, start, start + 24)
        feed(second, answers, start, start + 24)
    assert second.state() == whole.state()
    assert repr(second.stats()) == repr(whole.stats())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2.*reads 1"),
        ({"coverage": 0.8}, "another coverage"),
        ({"scale": 0.0}, "scale"),
        ({"levels": [0.0, 0.05]}, "levels"),
        ({"levels": [0.05]}, "unusable"),
        ({"outcomes": []}, "unusable"),
        ({"outcomes": [[1.0]] * 7}, "8 columns"),
        ({"outcomes": [[1.0], [0.0], *[[1.0]] * 6]}, "above 0"),
        ({"outcomes": [[1.0], [1.0, 2.0], *[[1.0]] * 6]}, "unusable"),
        ({"trusted": None}, "unusable"),
        ({"more": 1}, "unusable"),
    ],
)
def test_a_state_that_is_unusable_changes_nothing(change: dict[str, Any], words: str) -> None:
    answers = stream(4000, seed=1)
    watch = ForecastWatch(answers.calibration)
    feed(watch, answers, 0, 500)
    good = msgspec.to_builtins(watch.state())
    fresh = ForecastWatch(answers.calibration)
    before = fresh.state()
    with pytest.raises(WatchStateError, match=words):
        fresh.load_state({**good, **change})
    assert fresh.state() == before
    fresh.load_state(good)


def test_the_state_of_another_network_is_refused() -> None:
    watch = ForecastWatch(stream(64, seed=1).calibration)
    other = ForecastWatch(stream(64, seed=0).calibration)
    with pytest.raises(WatchStateError, match="another network"):
        watch.load_state(other.state())


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (0, np.nan, "mu nan"),
        (1, 0.0, "above 0"),
        (2, np.inf, "finite"),
        (3, -1.0, "above 0"),
        (4, 0, "0.0 tokens"),
        (4, 1 << 25, "must be in 1..16777216"),
        (6, -5, "cap of -5.0"),
    ],
)
def test_bad_outcomes_are_refused_and_none_is_noted(column: int, value: float, words: str) -> None:
    watch = ForecastWatch(stream(64, seed=0).calibration)
    columns = [np.full(40, v) for v in (5.0, 0.5, 5.0, 1.0, 100.0, 0.0, 1000.0)]
    columns[column][17] = value
    with pytest.raises(ValueError, match=f"outcome 17 .*{words}"):
        watch.observe(*columns)
    with pytest.raises(ValueError, match="one value per request"):
        watch.observe(*columns[:-1], [100])
    assert watch.stats().outcomes == 0


def test_the_calibration_must_reach_the_coverage() -> None:
    with pytest.raises(CalibrationError, match=r"0\.9999 is not known"):
        ForecastWatch(stream(64, seed=0).calibration, coverage=0.9999)


def test_an_interval_beyond_the_cap_is_the_cap() -> None:
    caps = np.arange(1, 3000)
    bounded = ForecastWatch(stream(64, seed=0).calibration).forecasts(
        np.full(2999, 15.0), np.full(2999, 0.1), caps
    )
    assert (bounded.lower == caps).all()
    assert (bounded.upper == caps).all()
