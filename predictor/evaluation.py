"""Scores of a saved network, asked as in serving."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from predictor.artifact import load_artifact
from predictor.errors import PredictorError
from predictor.labels import Labels
from predictor.learned import LearnedForecaster
from predictor.prior import PriorForecaster, PriorStateError
from predictor.scores import Distributions, Scores, prior_distributions, score
from predictor.splits import prompt_key
from predictor.training import PRIOR_FILE, PROMPTS_FILE

_BATCH = 256


class EvaluationError(PredictorError):
    """A network cannot be scored; one line with the fix."""


def evaluate(
    folder: Path,
    labels: Labels,
    *,
    coverage: float = 0.9,
    cap_tokens: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    forecaster: LearnedForecaster | None = None,
) -> Scores:
    """Score the network in `folder` and the prior of its training labels on `labels`.

    A model that the prior does not know is given what it knows of all models.

    Args:
        folder: Holds the network.
        labels: What to score on.
        coverage: Share of answers that the intervals should contain.
        cap_tokens: Cap of prompts that name none; None: `scores.CAP_TOKENS`.
        device: Where torch computes.
        threads: CPU threads.
        forecaster: The network in the folder, if it is loaded already.

    Raises:
        EvaluationError: The coverage is out of range, the prior cannot be read, or the network has
            no answer for a prompt.
        ArtifactError: The network cannot be used.
        DeviceError: The device cannot be used.
        CalibrationError: The network's calibration does not reach the coverage.
    """
    if not 0 < coverage < 1:
        raise EvaluationError(f"coverage is {coverage}, must be above 0 and below 1")
    forecaster = forecaster or LearnedForecaster.load(folder, device, threads)
    prior = _prior(folder, coverage)
    rows = range(0, len(labels), _BATCH)
    parts = [
        forecaster.predict(labels.prompts.take(np.arange(at, min(at + _BATCH, len(labels)))))
        for at in rows
    ]
    mu, sigma = (np.concatenate(column) for column in zip(*parts, strict=True))
    unanswered = ~(np.isfinite(mu) & np.isfinite(sigma))
    if unanswered.any():
        raise EvaluationError(
            f"the network has no answer for {int(unanswered.sum()):,} of {len(labels):,} prompts, "
            f"the first is row {int(unanswered.argmax())} ({forecaster.last_failure}); leave them "
            "out or train the network again"
        )
    bounds = forecaster.calibration.bounds(labels.prompts.model, mu, sigma, coverage)
    return score(
        labels,
        Distributions(mu, sigma, *bounds),
        prior_distributions(prior, labels),
        forecaster.calibration.own_sigma(labels.prompts.model, sigma),
        coverage,
        cap_tokens,
    )


def trained_cap(folder: Path) -> int | None:
    """The length that counted as cut in the training of the network in `folder`; None: none did.

    Raises:
        ArtifactError: The network cannot be used.
    """
    cap = load_artifact(folder).training.get("cap_tokens")
    return cap if isinstance(cap, int) else None


def learnt_from(folder: Path, labels: Labels) -> int:
    """How many of these prompts the network in `folder` was trained on.

    Raises:
        EvaluationError: The folder does not say what it was trained on.
    """
    try:
        known = np.load(folder / PROMPTS_FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(_unreadable(folder / PROMPTS_FILE, error)) from error
    keys = np.array([prompt_key(text) for text in labels.prompts.text], np.uint64)
    return int(np.isin(keys, known).sum())


def _prior(folder: Path, coverage: float) -> PriorForecaster:
    file = folder / PRIOR_FILE
    prior = PriorForecaster(coverage)
    try:
        prior.load_state(msgspec.json.decode(file.read_bytes()))
    except (OSError, msgspec.DecodeError, PriorStateError) as error:
        raise EvaluationError(_unreadable(file, error)) from error
    return prior


def _unreadable(file: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{file} cannot be read ({reason}); `tiebreak train` writes it beside the network"
