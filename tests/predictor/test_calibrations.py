"""Calibration by model: each model's answers are covered, not only those of all together."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from policies.batch import Floats, Ints
from policies.forecast import DEGREES_OF_FREEDOM as NU
from predictor.calibrations import MODEL_PROMPTS, Calibrations, calibrate_models
from predictor.conformal import CalibrationError, calibrate

WIDTH = {"calm": 0.3, "wild": 1.2}
"""How far answers of a model scatter, where the network says 0.6 of both."""


def answers(prompts: int, seed: int, models: tuple[str, ...] = ("calm", "wild")) -> tuple:
    """Model, mu, sigma, lengths, cuts and prompt of every row; each prompt goes to every model."""
    rng = np.random.default_rng(seed)
    model = [name for _ in range(prompts) for name in models]
    rows = len(model)
    mu = np.repeat(rng.normal(5, 1, prompts), len(models))
    width = np.array([WIDTH.get(name, 0.6) for name in model])
    tokens = np.exp(mu[:, None] + width[:, None] * rng.standard_t(NU, (rows, 3)))
    lengths: Ints = np.ceil(tokens.clip(1, 1e9)).astype(np.int64)
    cut = np.zeros(lengths.shape, np.bool_)
    return model, mu, np.full(rows, 0.6), lengths, cut, np.arange(rows) // len(models)


def coverage(made: Calibrations, model: str, seed: int = 99) -> Floats:
    """Shares of a model's other answers below, inside and above its intervals."""
    names, mu, sigma, tokens, *_ = answers(4000, seed, (model,))
    lower, upper = made.bounds(names, *made.corrected(names, mu, sigma))
    below, above = tokens < np.floor(lower)[:, None], tokens > np.ceil(upper)[:, None]
    return np.array([below.mean(), (~below & ~above).mean(), above.mean()])


def test_each_models_intervals_hold_its_own_answers() -> None:
    made = calibrate_models(*answers(2000, seed=1))
    assert set(made.models) == set(WIDTH)
    for model in WIDTH:
        below, inside, above = coverage(made, model)
        assert inside == pytest.approx(0.9, abs=0.02), model
        assert below == pytest.approx(above, abs=0.02), model
    together = Calibrations(made.pooled)
    assert coverage(together, "calm")[1] > 0.95
    assert coverage(together, "wild")[1] < 0.88


def test_a_model_of_few_prompts_and_an_unknown_one_have_the_pooled_calibration() -> None:
    many, few = answers(MODEL_PROMPTS, 2, ("calm",)), answers(MODEL_PROMPTS - 1, 3, ("wild",))
    last = (*few[:5], few[5] + MODEL_PROMPTS)
    joined = [[*a, *b] if isinstance(a, list) else np.concatenate((a, b))
              for a, b in zip(many, last, strict=True)]  # fmt: skip
    made = calibrate_models(*joined)
    assert set(made.models) == {"calm"}
    assert made.of("wild") is made.of("nobody knows it") is made.pooled
    assert made.pooled == calibrate(*joined[1:])
    assert made.of("calm") == calibrate(*many[1:])


def test_a_model_alone_needs_no_second_calibration() -> None:
    model, *columns = answers(2 * MODEL_PROMPTS, 4, ("calm",))
    assert calibrate_models(model, *columns) == Calibrations(calibrate(*columns))


def test_a_model_whose_every_answer_was_cut_has_the_pooled_calibration() -> None:
    columns = list(answers(MODEL_PROMPTS, 5))
    columns[4] = np.repeat(np.array([name == "wild" for name in columns[0]])[:, None], 3, axis=1)
    assert set(calibrate_models(*columns).models) == {"calm"}


def test_rows_are_corrected_in_their_order_and_back() -> None:
    made = calibrate_models(*answers(600, seed=6))
    names, mu, sigma = ["wild", "calm", "other", "wild"], np.arange(4.0, 8.0), np.full(4, 0.6)
    location, spread = made.corrected(names, mu, sigma)
    for row, name in enumerate(names):
        own = made.of(name).corrected(mu[row], sigma[row])
        assert (location[row], spread[row]) == pytest.approx(own)
    assert spread[0] == spread[3] > spread[2] > spread[1]
    assert made.own_sigma(names, spread) == pytest.approx(sigma)
    assert sigma.tolist() == [0.6] * 4, "what is given stays as it is"
    assert msgspec.json.decode(msgspec.json.encode(made), type=Calibrations) == made


def test_the_coverage_that_one_of_the_models_cannot_give_is_refused() -> None:
    made = calibrate_models(*answers(MODEL_PROMPTS, seed=7))
    with pytest.raises(CalibrationError, match=f"is not known from {MODEL_PROMPTS} prompts"):
        made.bounds(["calm"], np.array([5.0]), np.array([1.0]), 0.999)
