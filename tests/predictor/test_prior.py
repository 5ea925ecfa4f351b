import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.batch import Floats
from policies.fit import Bools
from policies.forecast import DEGREES_OF_FREEDOM, Forecast
from policies.length_histogram import MAX_TOKENS
from policies.model_lengths import DEFAULT_MU, DEFAULT_SIGMA
from predictor.messages import Outcome
from predictor.prior import PriorForecaster, PriorStateError

ENDLESS = 1e12


def draw(rng: np.random.Generator, mu: float, sigma: float, count: int) -> Floats:
    """Answer lengths in tokens from a log-t, (count,)."""
    lengths = np.exp(mu + sigma * rng.standard_t(DEGREES_OF_FREEDOM, count))
    return np.clip(np.rint(lengths), 1, MAX_TOKENS)


def outcomes(
    lengths: Floats,
    censored: Bools | None = None,
    model: str = "m",
    prompt_tokens: int = 100,
) -> list[Outcome]:
    cut = np.zeros(len(lengths), np.bool_) if censored is None else censored
    return [
        Outcome(model, prompt_tokens, int(length), bool(c))
        for length, c in zip(lengths, cut, strict=True)
    ]


def trained(
    batches: Sequence[list[Outcome]], half_life_samples: float = ENDLESS
) -> PriorForecaster:
    forecaster = PriorForecaster(half_life_samples=half_life_samples)
    for batch in batches:
        forecaster.observe_many(batch)
    return forecaster


def forecast_one(
    forecaster: PriorForecaster,
    prompt_tokens: int = 100,
    max_tokens: int = MAX_TOKENS,
    model: str = "m",
) -> Forecast:
    return forecaster.forecast(model, [prompt_tokens], [max_tokens])[0]


def test_an_unknown_model_has_the_default_distribution() -> None:
    forecast = forecast_one(PriorForecaster())
    assert (forecast.mu, forecast.sigma, forecast.source) == (DEFAULT_MU, DEFAULT_SIGMA, "prior")
    assert forecast.lower < math.exp(DEFAULT_MU) < forecast.upper


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cut_share", [0.0, 0.3])
def test_it_recovers_the_distribution_that_lengths_came_from(seed: int, cut_share: float) -> None:
    rng = np.random.default_rng(seed)
    count, mu, sigma = 8000, 5.5, 0.6
    lengths = draw(rng, mu, sigma, count)
    caps = np.full(count, ENDLESS)
    caps[rng.random(count) < 2 * cut_share] = math.exp(mu)  # the median cuts half of those
    censored = lengths >= caps
    assert abs(censored.mean() - cut_share) < 0.02
    batch = outcomes(np.minimum(lengths, caps), censored)
    forecast = forecast_one(trained([batch]))
    # The t's Fisher information with nu = 3.5 gives standard errors below 1.6 sigma / sqrt(n).
    assert abs(forecast.mu - mu) < 5 * 1.6 * sigma / math.sqrt(count)
    assert abs(forecast.sigma - sigma) < 5 * 1.6 * sigma / math.sqrt(count)


def test_ignoring_that_answers_were_cut_would_be_noticed() -> None:
    lengths = draw(np.random.default_rng(0), 5.5, 0.6, 4000)
    cap = 300.0
    cut = outcomes(np.minimum(lengths, cap), lengths >= cap)
    as_if_ended = outcomes(np.minimum(lengths, cap))
    right, wrong = (forecast_one(trained([batch])) for batch in (cut, as_if_ended))
    assert abs(right.mu - 5.5) < 0.05
    assert abs(right.sigma - 0.6) < 0.05
    assert wrong.mu < 5.45
    assert wrong.sigma < 0.4


def test_prompt_lengths_and_models_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    forecaster = trained(
        [
            outcomes(draw(rng, 3.0, 0.3, 2000), prompt_tokens=70),
            outcomes(draw(rng, 6.0, 0.8, 2000), prompt_tokens=1500),
            outcomes(draw(rng, 4.5, 0.5, 2000), model="other"),
        ]
    )
    short, long = forecaster.forecast("m", [127, 1024], [MAX_TOKENS] * 2)
    assert (short.mu, short.sigma) == (pytest.approx(3.0, abs=0.1), pytest.approx(0.3, abs=0.1))
    assert (long.mu, long.sigma) == (pytest.approx(6.0, abs=0.1), pytest.approx(0.8, abs=0.1))
    assert forecast_one(forecaster, model="other").mu == pytest.approx(4.5, abs=0.1)
    assert forecast_one(forecaster, model="third").mu == DEFAULT_MU


def test_a_bucket_leans_on_the_model_until_it_has_answers_of_its_own() -> None:
    rng = np.random.default_rng(2)
    forecaster = trained([outcomes(draw(rng, 6.0, 0.4, 3000), prompt_tokens=1000)])
    locations = [forecast_one(forecaster, prompt_tokens=10).mu]
    assert locations[0] == pytest.approx(6.0, abs=0.1)
    for count in (5, 15, 80, 900):
        forecaster.observe_many(outcomes(draw(rng, 3.0, 0.4, count), prompt_tokens=10))
        forecaster.observe_many(outcomes(draw(rng, 6.0, 0.4, 1000), prompt_tokens=1000))
        locations.append(forecast_one(forecaster, prompt_tokens=10).mu)
    assert locations == sorted(locations, reverse=True)
    assert locations[1] > 5.5
    assert locations[-1] == pytest.approx(3.0, abs=0.15)


def test_a_model_with_one_answer_leans_on_the_default() -> None:
    forecaster = PriorForecaster()
    forecaster.observe("m", 100, 3000)
    after_one = forecast_one(forecaster)
    assert DEFAULT_MU < after_one.mu < math.log(3000)
    assert after_one.sigma > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_covers_its_share_of_new_answers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    forecast = forecast_one(trained([outcomes(draw(rng, 5.0, 0.7, 3000))]))
    new = draw(rng, 5.0, 0.7, 3000)
    covered = np.mean((new >= forecast.lower) & (new <= forecast.upper))
    assert 0.87 < covered < 0.93
    assert abs(np.mean(new < forecast.lower) - np.mean(new > forecast.upper)) < 0.03


def test_coverage_is_the_caller_s_choice() -> None:
    rng = np.random.default_rng(3)
    state = trained([outcomes(draw(rng, 5.0, 0.7, 3000))]).state()
    narrow = PriorForecaster(coverage=0.5)
    narrow.load_state(state)
    forecast = forecast_one(narrow)
    new = draw(rng, 5.0, 0.7, 3000)
    assert 0.46 < np.mean((new >= forecast.lower) & (new <= forecast.upper)) < 0.54


def test_old_answers_are_forgotten() -> None:
    rng = np.random.default_rng(4)
    before, after = draw(rng, 6.5, 0.4, 4000), draw(rng, 4.0, 0.4, 4000)
    remembering = trained([outcomes(before), outcomes(after)])
    forgetting = trained([outcomes(before), outcomes(after)], half_life_samples=300)
    assert forecast_one(forgetting).mu == pytest.approx(4.0, abs=0.1)
    assert forecast_one(forgetting).sigma == pytest.approx(0.4, abs=0.1)
    assert forecast_one(remembering).mu > 4.5


def test_fits_are_renewed_when_enough_answers_are_new() -> None:
    rng = np.random.default_rng(5)
    forecaster = trained([outcomes(draw(rng, 5.0, 0.5, 1000))])
    first = forecast_one(forecaster)
    forecaster.observe_many(outcomes(np.full(49, 9000.0)))
    assert forecast_one(forecaster) == first
    forecaster.observe_many(outcomes(np.full(10, 9000.0)))
    assert forecast_one(forecaster).mu > first.mu


def test_intervals_end_at_each_request_s_own_cap() -> None:
    forecaster = trained([outcomes(draw(np.random.default_rng(6), 5.0, 0.7, 1000))])
    caps = [1, 10, 100, 1000, 10_000]
    forecasts = forecaster.forecast("m", [100] * 5, caps)
    assert (forecasts[0].lower, forecasts[0].upper) == (1, 1)
    assert all(1 <= f.lower <= f.upper <= cap for f, cap in zip(forecasts, caps, strict=True))
    assert forecasts[3].upper == forecasts[4].upper < 1000
    assert len({(f.mu, f.sigma) for f in forecasts}) == 1


@settings(max_examples=50, deadline=None)
@given(
    answers=st.lists(
        st.tuples(
            st.integers(1, MAX_TOKENS),
            st.integers(1, MAX_TOKENS),
            st.booleans(),
        ),
        max_size=40,
    ),
    asked=st.lists(st.tuples(st.integers(1, MAX_TOKENS), st.integers(1, MAX_TOKENS)), max_size=20),
)
def test_whatever_was_observed_forecasts_are_valid_and_survive_a_round_trip(
    answers: list[tuple[int, int, bool]], asked: list[tuple[int, int]]
) -> None:
    forecaster = PriorForecaster(half_life_samples=5)
    forecaster.observe_many([Outcome("m", *answer) for answer in answers])
    prompts, caps = ([pair[i] for pair in asked] for i in (0, 1))
    forecasts = forecaster.forecast("m", prompts, caps)
    assert all(1 <= f.lower <= f.upper <= cap for f, cap in zip(forecasts, caps, strict=True))
    copy = PriorForecaster()
    copy.load_state(json.loads(json.dumps(forecaster.state())))
    assert copy.forecast("m", prompts, caps) == forecasts


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "message"),
    [
        (0, 5, "prompt_tokens is 0"),
        (-3, 5, "prompt_tokens is -3"),
        (5, 0, "output_tokens is 0"),
        (5, -1, "output_tokens is -1"),
        (5, MAX_TOKENS + 1, f"output_tokens is {MAX_TOKENS + 1} at position 0"),
        (5, 7.5, "output_tokens holds float64 values"),
        (5, 1 << 80, "output_tokens holds object values"),
    ],
)
def test_absurd_lengths_are_refused(prompt_tokens: Any, output_tokens: Any, message: str) -> None:
    forecaster = PriorForecaster()
    good = Outcome("m", 5, 5, False)
    with pytest.raises(ValueError, match=message):
        forecaster.observe("m", prompt_tokens, output_tokens)
    with pytest.raises(ValueError, match="must be"):
        forecaster.observe_many([good, Outcome("m", prompt_tokens, output_tokens, False)])
    assert forecaster.models == []


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "message"),
    [
        ([5, 0], [5, 5], "prompt_tokens is 0 at position 1"),
        ([5], [0], "max_tokens is 0 at position 0"),
        ([5], [float("nan")], "max_tokens holds float64"),
        ([5, 5], [5], "2 prompt_tokens but 1 max_tokens"),
        (5, 5, "one value per request"),
    ],
)
def test_absurd_queries_are_refused(prompt_tokens: Any, max_tokens: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PriorForecaster().forecast("m", prompt_tokens, max_tokens)


def test_no_queries_give_no_forecasts() -> None:
    assert PriorForecaster().forecast("m", [], []) == []


@pytest.mark.parametrize("arguments", [{"coverage": 1.0}, {"half_life_samples": 0.0}])
def test_arguments_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PriorForecaster(**arguments)


def test_a_saved_prior_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "prior.json"
    forecaster = trained([outcomes(draw(np.random.default_rng(7), 5.0, 0.7, 500))])
    forecaster.save(path)
    forecaster.save(path)
    found, warning = PriorForecaster.load(path)
    assert warning is None
    assert found.forecast("m", [100, 5], [50, 500]) == forecaster.forecast("m", [100, 5], [50, 500])
    assert [p.name for p in path.parent.iterdir()] == ["prior.json"]


def test_learning_goes_on_after_a_restart_as_if_there_had_been_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    first, second = (outcomes(draw(rng, mu, 0.7, 500)) for mu in (5.0, 4.0))
    uninterrupted = trained([first], half_life_samples=200)
    uninterrupted.save(tmp_path / "prior.json")
    restarted, _ = PriorForecaster.load(tmp_path / "prior.json", half_life_samples=200)
    for forecaster in (uninterrupted, restarted):
        forecaster.observe_many(second)
    assert forecast_one(restarted) == forecast_one(uninterrupted)


def test_a_restart_does_not_put_off_the_next_fit() -> None:
    rng = np.random.default_rng(10)
    forecaster = trained([outcomes(draw(rng, 5.0, 0.5, 1000))])
    first = forecast_one(forecaster)
    forecaster.observe_many(outcomes(np.full(40, 9000.0)))
    copy = PriorForecaster(half_life_samples=ENDLESS)
    copy.load_state(forecaster.state())
    assert forecast_one(copy) == first
    copy.observe_many(outcomes(np.full(20, 9000.0)))
    assert forecast_one(copy).mu > first.mu


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "prior.json").mkdir()
    with pytest.raises(OSError, match=r"prior\.json"):
        PriorForecaster().save(tmp_path / "prior.json")
    assert [p.name for p in tmp_path.iterdir()] == ["prior.json"]


def test_a_missing_file_is_a_fresh_start(tmp_path: Path) -> None:
    forecaster, warning = PriorForecaster.load(tmp_path / "none.json")
    assert (forecaster.models, warning) == ([], None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"{",
        b'{"version": 99, "bins_per_octave": 8, "models": {}}',
        b'{"version": 1, "bins_per_octave": 8, "models": {"m": {}}}',
        b'{"version": 1, "bins_per_octave": 8, "models": {"m": {"unfitted": 0, "mu": [], '
        b'"sigma": [], "overall": {}, "buckets": {}}}}',
        b"[" * 100_000,
    ],
)
def test_an_unusable_file_is_moved_aside_and_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prior.json"
    path.write_bytes(content)
    forecaster, warning = PriorForecaster.load(path)
    assert forecaster.models == []
    assert "unusable" in (warning or "")
    assert (tmp_path / "prior.json.unusable").read_bytes() == content
    assert PriorForecaster.load(path)[1] is None


def test_who_only_reads_leaves_an_unusable_file_to_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    path.write_bytes(b'{"version": 99}')
    forecaster, warning = PriorForecaster.load(path, writes=False)
    assert forecaster.models == []
    assert "is unusable, starting afresh" in (warning or "")
    assert [file.name for file in tmp_path.iterdir()] == ["prior.json"]


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    forecaster, warning = PriorForecaster.load(tmp_path)
    assert forecaster.models == []
    assert "cannot be read" in (warning or "")


def test_a_bad_state_changes_nothing() -> None:
    forecaster = trained([outcomes(np.full(50, 40.0))])
    before = forecast_one(forecaster)
    state = forecaster.state()
    state["models"]["m"]["sigma"][3] = -1.0
    with pytest.raises(PriorStateError, match="smallest sigma is -1"):
        forecaster.load_state(state)
    assert forecast_one(forecaster) == before


def test_a_copy_does_not_fit_again() -> None:
    forecaster = trained([outcomes(draw(np.random.default_rng(9), 5.0, 0.7, 500))])
    state = forecaster.state()
    assert state["models"]["m"]["unfitted"] == 0
    assert state["models"]["m"]["mu"][6] == forecast_one(forecaster).mu != DEFAULT_MU
