"""A network's calibration for each of the models whose answers it forecasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from policies.batch import Floats, Ints
from predictor.conformal import Calibration, calibrate

MODEL_PROMPTS = 225
"""Prompts from which on a model is calibrated by itself. Given n of them, the coverage of
a conformal interval of 90 % is spread around that by sqrt(0.9 * 0.1 / n): two points at 225."""


class Calibrations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network's calibration for every model whose answers it forecasts.

    Coverage over all models together says nothing of one of them, and a cluster serves one. So
    models with prompts enough have their own (conformal prediction within groups).

    Attributes:
        pooled: Of all models together; serves unknown ones and those of few prompts.
        models: Of models with `MODEL_PROMPTS` prompts or more, by name, where there are several
            models.
    """

    pooled: Calibration
    models: dict[str, Calibration] = {}

    def of(self, model: str) -> Calibration:
        """That of one model."""
        return self.models.get(model, self.pooled)

    def corrected(
        self, model: Sequence[str], mu: ArrayLike, sigma: ArrayLike
    ) -> tuple[Floats, Floats]:
        """`Calibration.corrected`, each row by its model's, each (n,).

        Args:
            model: Who answers, (n,).
            mu: Location of ln X as the network gives it, (n,).
            sigma: Scale of ln X as the network gives it, (n,).
        """
        location, spread = np.array(mu, np.float64), np.array(sigma, np.float64)
        for calibration, rows in self._groups(model):
            location[rows], spread[rows] = calibration.corrected(location[rows], spread[rows])
        return location, spread

    def own_sigma(self, model: Sequence[str], sigma: ArrayLike) -> Floats:
        """`Calibration.own_sigma`, each row by its model's, (n,)."""
        own = np.array(sigma, np.float64)
        for calibration, rows in self._groups(model):
            own[rows] = calibration.own_sigma(own[rows])
        return own

    def bounds(
        self, model: Sequence[str], mu: ArrayLike, sigma: ArrayLike, coverage: float = 0.9
    ) -> tuple[Floats, Floats]:
        """`Calibration.bounds`, each row by its model's, each (n,).

        Args:
            model: Who answers, (n,).
            mu: Location of ln X as `corrected` gives it, (n,).
            sigma: Scale of ln X as `corrected` gives it, (n,).
            coverage: In (0, 1).

        Raises:
            CalibrationError: The coverage is out of range or of a calibration's reach.
        """
        lower, upper = np.array(mu, np.float64), np.array(sigma, np.float64)
        for calibration, rows in self._groups(model):
            lower[rows], upper[rows] = calibration.bounds(lower[rows], upper[rows], coverage)
        return lower, upper

    def _groups(self, model: Sequence[str]) -> Iterator[tuple[Calibration, Ints]]:
        """Each calibration with the rows that it is for."""
        names, group = np.unique(
            [name if name in self.models else "" for name in model], return_inverse=True
        )
        for index, name in enumerate(names.tolist()):
            yield self.of(name), np.flatnonzero(group == index)


def calibrate_models(
    model: Sequence[str],
    mu: ArrayLike,
    sigma: ArrayLike,
    output_tokens: ArrayLike,
    censored: ArrayLike,
    prompt: ArrayLike,
) -> Calibrations:
    """Calibrate a network for all models together and for each that has prompts enough.

    Args:
        model: Who answered, (n,).
        mu: As in `calibrate`, and so are the rest.
        sigma: Scale of ln X.
        output_tokens: Answers' lengths.
        censored: Whether a cap ended the answer.
        prompt: A number for each distinct prompt, (n,).

    Raises:
        CalibrationError: Shapes differ, a value is out of range, or there is too little to go by.
    """
    columns = [np.asarray(column) for column in (mu, sigma, output_tokens, censored, prompt)]
    pooled, models = calibrate(*columns), {}
    names, group = np.unique(model, return_inverse=True)
    for index, name in enumerate(names.tolist()):
        own = [column[group == index] for column in columns]
        known = (own[2] > 0) & ~own[3].astype(np.bool_)
        if len(names) > 1 and known.any() and len(np.unique(own[4])) >= MODEL_PROMPTS:
            models[name] = calibrate(*own)
    return Calibrations(pooled, models)
