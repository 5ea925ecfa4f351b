"""A learned ranking of requests by length: a point estimate of given rank correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from jobs.simulating.forecasts import Forecaster
from jobs.simulating.truth import Truth
from policies.batch import Floats


@dataclass(frozen=True, slots=True)
class RankForecast:
    """A point estimate of the length whose Kendall correlation with it is `tau`.

    The true length's normal score z, its quantile among such requests, is blurred to
    `rho z + sqrt(1 - rho^2) Z` with `rho = sin(pi tau / 2)`, for which the Kendall correlation of
    two
    normals is tau, and turned back into a length of that quantile. So ranks carry all of the
    information, as from a ranker trained on pairs or lists (LTR: arXiv:2408.15792); the scale is 0.

    Attributes:
        tau: Kendall correlation, in [0, 1); arXiv:2604.00499 reports 0.64 for LTR.
    """

    tau: float = 0.64

    def learn(self, history: Truth) -> Forecaster:
        """Takes the distribution of lengths from `history`."""
        known = np.sort(history.output_tokens).astype(np.float64)
        rho = math.sin(math.pi * self.tau / 2)

        def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
            noise = random.standard_normal(len(truth.output_tokens))
            score = _normal_scores(known, truth.output_tokens.astype(np.float64), random)
            blurred = special.ndtr(rho * score + math.sqrt(1 - rho * rho) * noise)
            return np.log(np.quantile(known, blurred)), np.zeros(len(noise))

        return forecast


def _normal_scores(known: Floats, lengths: Floats, random: np.random.Generator) -> Floats:
    """Normal quantiles of the places of `lengths` in ascending `known`, ties by chance."""
    low = np.searchsorted(known, lengths, "left")
    high = np.searchsorted(known, lengths, "right")
    place = low + random.random(len(lengths)) * (high - low)
    return np.asarray(special.ndtri((place + 0.5) / (len(known) + 1)))
