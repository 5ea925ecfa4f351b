"""Calibration of a network's forecasts on prompts that it has not learnt from.

A network trained on labels knows the spread of one prompt's answers but not its own error, and may
lean to one side. Both show in the standardised residuals `z = (ln x - mu) / sigma` of held-out
prompts: their location and scale correct mu and sigma, and the quantiles of what is left give
intervals that hold whatever the residuals' distribution is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from policies.batch import Floats
from policies.fit import Bools, fit
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.logt import DENSITY_AT_0
from predictor.errors import PredictorError

MIN_PROMPTS = 19
"""Prompts that a calibration needs at least: with fewer, no finite interval covers 90 %."""

PROBABILITIES = np.arange(1, 400) / 400
"""Where quantiles of the residuals are kept, as far as the prompts reach."""

_ERRORS = (0.0, *np.geomspace(0.05, 2.0, 16).tolist())
_FARTHEST = 100.0  # residuals beyond say nothing more, and exp of them must stay finite
_SCALE_MIN = 0.05
_ROUNDING = 1e-9


class CalibrationError(PredictorError):
    """Outcomes that cannot calibrate a network, or a calibration that cannot be used."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a network's mu and sigma are corrected, and which quantiles its residuals then have.

    Attributes:
        shift: Added to mu, in units of the widened sigma.
        scale: Multiplies the widened sigma, above 0.
        probabilities: Where quantiles are known, ascending in (0, 1).
        z: Quantiles of `(ln X - mu) / sigma` after the correction, ascending; conservative for
            one more prompt: low ones err low, high ones err high.
        prompts: Prompts it rests on.
        samples: Answers it rests on.
        error: Spread of the network's own error in mu, at least 0: it widens sigma to
            `hypot(sigma, error)`, first of all.

    Raises:
        CalibrationError: A value is out of range (while decoding: `msgspec.ValidationError`).
    """

    shift: float
    scale: float
    probabilities: list[float]
    z: list[float]
    prompts: int
    samples: int
    error: float = 0.0

    def __post_init__(self) -> None:
        finite = np.isfinite([self.shift, self.scale, self.error]).all()
        if not (finite and self.scale > 0 and self.error >= 0):
            raise CalibrationError(
                f"a calibration has shift {self.shift}, scale {self.scale} and error {self.error}, "
                "must be finite, the scale above 0 and the error at least 0; calibrate the network "
                "again"
            )
        levels, z = np.array(self.probabilities, np.float64), np.array(self.z, np.float64)
        if not (levels.shape == z.shape and len(z) >= 2 and np.isfinite(z).all()):
            raise CalibrationError(
                f"a calibration has {len(levels)} probabilities and {len(z)} quantiles, must have "
                "equally many, at least 2, all finite; calibrate the network again"
            )
        inside = levels[0] > 0 and levels[-1] < 1
        if not (inside and (np.diff(levels) > 0).all() and (np.diff(z) >= 0).all()):
            raise CalibrationError(
                "a calibration's probabilities and quantiles must ascend, the probabilities in "
                f"(0, 1): they go from {levels[0]} to {levels[-1]}, the quantiles from {z[0]} to "
                f"{z[-1]}; calibrate the network again"
            )

    def corrected(self, mu: ArrayLike, sigma: ArrayLike) -> tuple[Floats, Floats]:
        """Mu and sigma with the network's bias and error counted in, each (n,).

        Args:
            mu: Location of ln X as the network gives it, (n,).
            sigma: Scale of ln X as the network gives it, (n,).
        """
        spread = np.hypot(np.asarray(sigma, np.float64), self.error)
        return np.asarray(mu, np.float64) + self.shift * spread, spread * self.scale

    def own_sigma(self, sigma: ArrayLike) -> Floats:
        """The network's sigma behind a corrected one, (n,)."""
        widened = np.asarray(sigma, np.float64) / self.scale
        own: Floats = np.sqrt(np.maximum(widened**2 - self.error**2, 0.0))
        return own

    def quantile(self, probability: ArrayLike) -> Floats:
        """Quantiles of the corrected residual, (n,).

        Between the levels kept they are interpolated, beyond them they go on as the quantiles of a
        Student-t do.

        Args:
            probability: Levels in (0, 1), (n,).
        """
        p = np.asarray(probability, np.float64)
        levels, z = np.array(self.probabilities), np.array(self.z)
        nearest = np.clip(p, levels[0], levels[-1])
        beyond = special.stdtrit(NU, p) - special.stdtrit(NU, nearest)
        quantiles: Floats = np.interp(nearest, levels, z) + beyond
        return quantiles

    def bounds(
        self, mu: ArrayLike, sigma: ArrayLike, coverage: float = 0.9
    ) -> tuple[Floats, Floats]:
        """Ends of an interval that holds a share `coverage` of answers, in tokens, each (n,).

        Its ends are equally far out in probability. They know of no cap: the interval of min(X,
        cap) ends where this one does or at the cap.

        Args:
            mu: Location of ln X as `corrected` gives it, (n,).
            sigma: Scale of ln X as `corrected` gives it, (n,).
            coverage: In (0, 1).

        Raises:
            CalibrationError: The coverage is out of range, or asks for more prompts than there
                were.
        """
        if not 0 < coverage < 1:
            raise CalibrationError(f"coverage is {coverage}, must be above 0 and below 1")
        tail = (1 - coverage) / 2
        least = max(self.probabilities[0], 1 - self.probabilities[-1])
        if tail < least - _ROUNDING:
            raise CalibrationError(
                f"a coverage of {coverage} is not known from {self.prompts} prompts: at most "
                f"{1 - 2 * least:.4f} is; calibrate with more than {2 / (1 - coverage):.0f} "
                "prompts, or ask for less"
            )
        low, high = self.quantile(np.array([tail, 1 - tail]))
        location, spread = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
        with np.errstate(over="ignore"):
            return np.exp(location + spread * low), np.exp(location + spread * high)


def calibrate(
    mu: ArrayLike,
    sigma: ArrayLike,
    output_tokens: ArrayLike,
    censored: ArrayLike,
    prompt: ArrayLike | None = None,
) -> Calibration:
    """Calibrate a network on prompts that it has not learnt from.

    A network that learnt the spread of each prompt's answers knows nothing of its own error in mu,
    which adds to a narrow forecast and hardly to a wide one; one that learnt from the samples has
    it counted in already. So error, shift and scale are those under which the answers, censored
    ones included, are likeliest: the error out of a grid, the other two of a log-t fitted to the
    pooled residuals. The quantiles are conformal with prompts as the exchangeable units: each
    prompt weighs the same and shares its weight among its samples (Lee, Barber and Willett, 2023,
    arXiv:2306.06342), one more prompt of unknown residual stands at the far end, and answers that a
    cap ended enter as right-censored (Kaplan and Meier, 1958), which takes the residuals to be
    independent of the cap given the forecast. Levels that caps hide go on as a Student-t.

    Args:
        mu: Location of ln X as the network gives it, (n,).
        sigma: Scale of ln X as the network gives it, above 0, (n,).
        output_tokens: Answers' lengths, (n, k); 0 pads prompts with fewer.
        censored: Whether a cap ended the answer, (n, k).
        prompt: A number for each distinct prompt, (n,): rows of the same one, put to several
            models, share its weight, since they tell of one prompt only. None: all are different.

    Raises:
        CalibrationError: Shapes differ, a value is out of range, or there is too little to go by.
    """
    location, spread = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    lengths, cut = np.asarray(output_tokens), np.asarray(censored, np.bool_)
    _check(location, spread, lengths, cut)
    row, column = np.nonzero(lengths)
    log_x, cut = np.log(lengths[row, column]), cut[row, column]
    own = np.arange(len(lengths)) if prompt is None else np.unique(prompt, return_inverse=True)[1]
    prompts = int(own.max()) + 1
    _check_enough(prompts)
    weight = 1 / (np.bincount(row)[row] * np.bincount(own)[own[row]])
    best = likeliest(log_x - location[row], spread[row], cut, weight)
    levels, z = _quantiles(best.residual, cut, weight, prompts)
    return Calibration(
        error=best.error,
        shift=best.shift,
        scale=best.scale,
        probabilities=levels.tolist(),
        z=z.tolist(),
        prompts=prompts,
        samples=len(row),
    )


class Correction(NamedTuple):
    """How forecasts are corrected (see `Calibration`), and how well that fits m answers.

    Attributes:
        error: Widens sigma.
        shift: Moves mu.
        scale: Multiplies sigma.
        residual: `(ln x - mu) / sigma` after that, (m,).
        likelihood: Weighted sum of the answers' log-likelihoods, of ln X.
    """

    error: float
    shift: float
    scale: float
    residual: Floats
    likelihood: float


def likeliest(missed: Floats, sigma: Floats, cut: Bools, weight: Floats) -> Correction:
    """The correction under which answers are likeliest.

    Args:
        missed: `ln x - mu` of each answer, (m,).
        sigma: As the network gives it, above 0, (m,).
        cut: Whether a cap ended the answer, (m,).
        weight: Of each answer, (m,).
    """
    corrections = (_correction(missed, sigma, cut, weight, error) for error in _ERRORS)
    return max(corrections, key=lambda correction: correction.likelihood)


def _correction(
    missed: Floats, sigma: Floats, cut: Bools, weight: Floats, error: float
) -> Correction:
    """The best shift and scale under an error, from `ln x - mu` of all answers, (m,) each."""
    spread = np.hypot(sigma, error)
    residual = np.clip(missed / spread, -_FARTHEST, _FARTHEST)
    fitted = fit(np.exp(residual)[None, :], cut[None, :], weight[None, :], sigma_min=_SCALE_MIN)
    shift, scale = (float(value[0]) for value in fitted)
    z = (residual - shift) / scale
    log_density = -(NU + 1) / 2 * np.log1p(z * z / NU) + math.log(DENSITY_AT_0)
    log_survival = np.log(special.stdtr(NU, -z))
    value = np.where(cut, log_survival, log_density - np.log(scale * spread))
    return Correction(error, shift, scale, z, float(weight @ value))


def _check_enough(prompts: int) -> None:
    if prompts < MIN_PROMPTS:
        raise CalibrationError(
            f"{prompts} prompts to calibrate with, must be at least {MIN_PROMPTS}: label more"
        )


def _check(mu: Floats, sigma: Floats, lengths: np.ndarray, cut: Bools) -> None:
    if lengths.ndim != 2 or lengths.shape != cut.shape or mu.shape != sigma.shape:
        raise CalibrationError(
            f"output_tokens and censored must have one shape (prompts, samples), got "
            f"{lengths.shape} and {cut.shape}; mu and sigma (prompts,), got {mu.shape} and "
            f"{sigma.shape}"
        )
    if mu.shape != lengths.shape[:1]:
        raise CalibrationError(f"{len(mu)} forecasts but {len(lengths)} prompts: give one each")
    good = np.isfinite(mu) & np.isfinite(sigma) & (sigma > 0)
    if not good.all():
        bad = int(np.argmin(good))
        raise CalibrationError(
            f"prompt {bad} has mu {mu[bad]} and sigma {sigma[bad]}, must be finite and sigma "
            "above 0: the network is broken, train it again"
        )
    if (lengths < 0).any() or not (lengths > 0).any(axis=1).all():
        bad = int(np.argmax((lengths < 0).any(axis=1) | ~(lengths > 0).any(axis=1)))
        raise CalibrationError(
            f"prompt {bad} has lengths {lengths[bad].tolist()}, must be positive (0 only pads) "
            "with at least one"
        )
    if cut[lengths > 0].all():
        raise CalibrationError(
            "every answer was ended by a cap, so that no length is known: sample with a larger "
            "max_tokens"
        )


def _quantiles(z: Floats, cut: Bools, weight: Floats, prompts: int) -> tuple[Floats, Floats]:
    """Levels and conformal quantiles there, each (l,), of weighted residuals (m,)."""
    order = np.lexsort((cut, z))  # of equal residuals the censored one is known to be the longer
    z, cut, weight = z[order], cut[order], weight[order]
    at_risk = np.cumsum(weight[::-1])[::-1]
    survival = np.cumprod(np.where(cut, 1.0, 1 - weight / at_risk).clip(0, 1))
    ended = ~cut
    at, after = z[ended], survival[ended]
    before = np.append(1.0, after[:-1])
    share = prompts / (prompts + 1)
    levels = PROBABILITIES[np.abs(PROBABILITIES - 0.5) <= share - 0.5 + _ROUNDING]
    # High: the least residual that enough lie at or below. Low: the largest that enough lie above.
    high = np.searchsorted(share * (1 - after), levels - _ROUNDING)
    low = np.searchsorted(-share * before, -(1 - levels) + _ROUNDING, side="right") - 1
    known = max(share * (1 - after[-1]), levels[0])
    beyond = special.stdtrit(NU, levels.clip(min=known)) - special.stdtrit(NU, known)
    upper = at[high.clip(max=len(at) - 1)] + np.where(high == len(at), beyond, 0.0)
    quantiles = np.where(levels > 0.5, upper, at[low.clip(min=0)])
    return levels, np.maximum.accumulate(quantiles)
