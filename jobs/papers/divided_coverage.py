"""Coverage over many divisions of the prompts that a network has not learnt from.

One division into calibration and test prompts says as much about the division as about the method:
with some hundred prompts on each side, coverage moves by a point or two.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from jobs.papers.remembering_encoder import shared_encoder
from policies.batch import Floats
from predictor.artifact import load_artifact
from predictor.calibrations import Calibrations, calibrate_models
from predictor.conformal import Calibration
from predictor.labels import Labels
from predictor.learned import LearnedForecaster
from predictor.scores import Distributions, covered
from predictor.splits import Split, prompt_key

_UNCHANGED = Calibrations(Calibration(0.0, 1.0, [0.25, 0.75], [-1.0, 1.0], prompts=1, samples=1))
_HELD_OUT = (Split.CALIBRATION, Split.TEST)


def divided_coverage(
    folder: Path, labels: Labels, cap_tokens: int, *, divisions: int, coverage: float = 0.9
) -> dict[str, list[float]]:
    """Coverage of each model's answers, one value for each division.

    Args:
        folder: Holds the network, whose encoder must not have been tuned.
        labels: What it was trained on; only the calibration and the test side are looked at.
        cap_tokens: Cap of prompts that name none.
        divisions: How often the texts of these sides are divided anew, half to calibrate with.
        coverage: Share of answers that the intervals should contain.
    """
    sides = labels.split()
    held_out = labels.take(np.sort(np.concatenate([sides[side] for side in _HELD_OUT])))
    mu, sigma = _uncalibrated(folder, held_out)
    model = np.array(held_out.prompts.model)
    keys = np.array([prompt_key(text) for text in held_out.prompts.text], np.uint64)
    distinct = np.unique(keys)
    found: dict[str, list[float]] = {name: [] for name in sorted(set(model.tolist()))}
    for division in range(divisions):
        drawn = np.random.default_rng(division).permutation(distinct)
        calibrating = np.isin(keys, drawn[: len(drawn) // 2])
        inside = _inside(held_out, mu, sigma, keys, calibrating, cap_tokens, coverage)
        for name, rates in found.items():
            rates.append(float(inside[model[~calibrating] == name].mean()))
    return found


def _inside(
    labels: Labels,
    mu: Floats,
    sigma: Floats,
    keys: np.ndarray,
    calibrating: np.ndarray,
    cap_tokens: int,
    coverage: float,
) -> Floats:
    """Share of the answers inside their interval for each prompt that does not calibrate."""
    known, test = np.flatnonzero(calibrating), np.flatnonzero(~calibrating)
    learnt, other = labels.take(known), labels.take(test)
    made = calibrate_models(
        learnt.prompts.model,
        mu[known],
        sigma[known],
        learnt.output_tokens,
        learnt.censored,
        keys[known],
    )
    location, spread = made.corrected(other.prompts.model, mu[test], sigma[test])
    bounds = made.bounds(other.prompts.model, location, spread, coverage)
    return covered(other, Distributions(location, spread, *bounds), cap_tokens)


def _uncalibrated(folder: Path, labels: Labels) -> tuple[Floats, Floats]:
    """Mu and sigma as the network gives them, each (n,)."""
    artifact = load_artifact(folder)
    assert not artifact.tuned, "a tuned encoder reads texts in its own way"
    network = LearnedForecaster(
        replace(artifact, calibration=_UNCHANGED), shared_encoder(artifact.encoder)
    )
    return network.predict(labels.prompts)
