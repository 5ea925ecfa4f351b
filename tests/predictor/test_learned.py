from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from predictor import learned
from predictor.artifact import Artifact, ArtifactError, save_artifact
from predictor.calibrations import Calibrations
from predictor.encoder import EncoderSpec, TextEncoder
from predictor.excerpt import excerpt
from predictor.learned import LearnedForecaster
from predictor.prompts import Prompts
from tests.predictor.networks import make_artifact, make_calibration, make_prompts, make_spec

TEXTS = ["write w1 words", "w2 w3?", "list 10 w3s", "explain w4 w5 w6"]
ROUNDING = 5e-3
"""Of features to half precision, up or down: who shares a pass of the encoder moves last digits."""


def make_forecaster(tmp_path: Path, **changes: Any) -> LearnedForecaster:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    return LearnedForecaster(make_artifact(encoder, **changes), encoder)


def by_hand(artifact: Artifact, encoder: TextEncoder, prompts: Prompts) -> list[np.ndarray]:
    """What training computes for the same prompts, then the calibration."""
    inputs = artifact.scaler(prompts, encoder.pooled(prompts.text))
    with torch.no_grad():
        mu, sigma = (column.double().numpy() for column in artifact.network(inputs))
    calibration = artifact.calibration.pooled
    return [mu + calibration.shift * sigma, sigma * calibration.scale]


def test_a_loaded_network_says_what_training_computed(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    artifact = make_artifact(encoder)
    save_artifact(tmp_path / "network", artifact)
    forecaster = LearnedForecaster.load(tmp_path / "network")
    texts = [*TEXTS, " ".join(f"w{index}" for index in range(600))]
    prompts = make_prompts(texts, model=["a", "b", "stranger", "a", "b"])
    mu, sigma = forecaster.predict(prompts)
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose([mu, sigma], by_hand(artifact, encoder, prompts), atol=ROUNDING)
    assert np.ptp(mu) > 0.05
    assert forecaster.models == ("a", "b")
    assert forecaster.card == "# A card\n"
    assert forecaster.last_failure is None


def test_tuned_layers_are_put_to_use(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    with torch.no_grad():
        for parameter in encoder.tunable(1):
            parameter.add_(0.2)
    artifact = make_artifact(encoder, tuned=encoder.tuned_state())
    save_artifact(tmp_path / "network", artifact)
    prompts = make_prompts(TEXTS)
    said = LearnedForecaster.load(tmp_path / "network").predict(prompts)
    np.testing.assert_allclose(said, by_hand(artifact, encoder, prompts), atol=ROUNDING)
    plain = TextEncoder(encoder.spec)
    assert np.abs(said - np.array(by_hand(artifact, plain, prompts))).max() > 0.02


def test_each_models_calibration_is_applied(tmp_path: Path) -> None:
    prompts = make_prompts(TEXTS, model=["a", "b", "stranger", "a"])
    raw = make_forecaster(tmp_path, calibration=Calibrations(make_calibration()))
    mu, sigma = raw.predict(prompts)
    own = Calibrations(make_calibration(0.5, 2.0), {"b": make_calibration(-1.0, 3.0)})
    corrected = make_forecaster(tmp_path, calibration=own).predict(prompts)
    shift, scale = np.array([0.5, -1.0, 0.5, 0.5]), np.array([2.0, 3.0, 2.0, 2.0])
    np.testing.assert_allclose(corrected, [mu + shift * sigma, scale * sigma])


def test_a_known_text_has_the_same_forecast_and_is_not_encoded_again(tmp_path: Path) -> None:
    forecaster = make_forecaster(tmp_path)
    first = forecaster.predict(make_prompts(TEXTS))
    assert forecaster.cache_hits == 0
    forecaster._encoder.pooled = None  # type: ignore[assignment, method-assign]
    again = forecaster.predict(make_prompts(TEXTS))
    np.testing.assert_array_equal(first, again)
    assert forecaster.cache_hits == len(TEXTS)


def test_a_text_that_comes_twice_in_a_batch_is_encoded_once(tmp_path: Path) -> None:
    forecaster, seen = make_forecaster(tmp_path), []
    pooled = forecaster._encoder.pooled
    forecaster._encoder.pooled = lambda texts: seen.extend(texts) or pooled(texts)  # type: ignore
    prompts = make_prompts([TEXTS[0]] * 3, prompt_tokens=[9, 9, 9])
    mu, _ = forecaster.predict(prompts)
    assert len(seen) == 1
    np.testing.assert_allclose(mu, mu[0], rtol=1e-5)


def test_the_cache_forgets_what_was_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "CACHED_TEXTS", 2)
    forecaster = make_forecaster(tmp_path)
    for text in ("w1", "w2", "w1", "w3", "w1"):
        forecaster.predict(make_prompts([text]))
    assert forecaster.cache_hits == 2
    forecaster.predict(make_prompts(["w2"]))
    assert forecaster.cache_hits == 2
    assert len(forecaster._known) == 2


def test_a_bad_row_costs_the_others_nothing(tmp_path: Path) -> None:
    good = make_prompts(TEXTS)
    expected = make_forecaster(tmp_path).predict(good)
    bad: dict[str, Prompts] = {
        "no text": make_prompts([""]),
        "the prompt has no text": make_prompts([" \n\t"]),
        "text is a NoneType": make_prompts([None]),  # type: ignore[list-item]
        "text is a bytes": make_prompts([b"w1"]),  # type: ignore[list-item]
        "model a list": make_prompts(["w1"], model=[["a"]]),  # type: ignore[list-item]
        "prompt_tokens is 0": make_prompts(["w1"], prompt_tokens=[0]),
        "max_tokens is -1": make_prompts(["w1"], max_tokens=[-1]),
        "temperature is nan": make_prompts(["w1"], temperature=[np.nan]),
        "temperature is inf": make_prompts(["w1"], temperature=[np.inf]),
        "temperature is -1.0": make_prompts(["w1"], temperature=[-1.0]),
    }
    for count, (reason, row) in enumerate(bad.items(), start=1):
        forecaster = make_forecaster(tmp_path)
        mixed = Prompts(
            *(
                [*getattr(good, name), *getattr(row, name)]
                if name in ("text", "model")
                else np.concatenate([getattr(good, name), getattr(row, name)])
                for name in ("text", "model", "prompt_tokens", "max_tokens", "temperature")
            )
        )
        mu, sigma = forecaster.predict(mixed)
        assert np.isnan([mu[-1], sigma[-1]]).all(), reason
        np.testing.assert_allclose([mu[:-1], sigma[:-1]], expected, atol=ROUNDING)
        assert reason in str(forecaster.last_failure), count
        assert forecaster.failures == 1


@pytest.mark.parametrize(
    "text", ["\ud800 w1", "w1 \x00 w2", "\x00", "w1 " * 100_000, "\u200b", "😀" * 3000]
)
def test_strange_texts_have_a_forecast(tmp_path: Path, text: str) -> None:
    forecaster = make_forecaster(tmp_path)
    mu, sigma = forecaster.predict(make_prompts([text]))
    assert np.isfinite([mu[0], sigma[0]]).all()
    cut = make_prompts([excerpt(text)])
    np.testing.assert_array_equal(forecaster.predict(cut), [mu, sigma])
    assert forecaster.cache_hits == 1


def test_a_text_that_the_encoder_fails_on_costs_the_others_nothing(tmp_path: Path) -> None:
    forecaster = make_forecaster(tmp_path)
    expected = forecaster.predict(make_prompts(TEXTS))
    forecaster = make_forecaster(tmp_path)
    pooled = forecaster._encoder.pooled

    def fails(texts: list[str]) -> np.ndarray:
        if any("secret" in text for text in texts):
            raise KeyError("secret")
        return pooled(texts)

    forecaster._encoder.pooled = fails  # type: ignore[assignment, method-assign]
    mu, sigma = forecaster.predict(make_prompts([*TEXTS, "secret", "secret"]))
    np.testing.assert_allclose([mu[:4], sigma[:4]], expected, atol=ROUNDING)
    assert np.isnan([mu[4:], sigma[4:]]).all()
    assert forecaster.failures == 2
    assert forecaster.last_failure == "the encoder failed with KeyError"


def test_an_answer_that_is_not_finite_is_none(tmp_path: Path) -> None:
    forecaster = make_forecaster(tmp_path)
    forecaster._artifact.network.target_mean.fill_(torch.nan)
    mu, sigma = forecaster.predict(make_prompts(TEXTS))
    assert np.isnan([mu, sigma]).all()
    assert "must be finite" in str(forecaster.last_failure)


def test_no_prompts_have_no_forecasts(tmp_path: Path) -> None:
    mu, sigma = make_forecaster(tmp_path).predict(make_prompts([]))
    assert mu.shape == sigma.shape == (0,)


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    artifact = make_artifact(encoder)
    wider = TextEncoder(msgspec.structs.replace(encoder.spec, layers=(1, 2)))
    with pytest.raises(ArtifactError, match="gives 96 features, the network reads 48"):
        LearnedForecaster(artifact, wider)


def test_an_encoder_that_is_gone_is_named(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    gone = EncoderSpec(str(tmp_path / "gone"))
    save_artifact(tmp_path / "network", replace(make_artifact(encoder), encoder=gone))
    with pytest.raises(ArtifactError, match="no encoder folder"):
        LearnedForecaster.load(tmp_path / "network")
