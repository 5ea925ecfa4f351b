"""Maximum-likelihood fit of the log-t to sampled lengths, over many prompts at once.

nu is fixed. Samples that stopped at a token limit are right-censored and enter through the
survival function. Without censoring the likelihood has one maximum (Kent, Tyler and Vardi 1994),
so the ascent below may start anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from policies.batch import Floats
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.logt import DENSITY_AT_0

_SCALE_OF_STD = float(np.sqrt((NU - 2) / NU))
_COLLAPSED = 0.1  # a scale below this share of the standard deviation is an effect of ties
_TOLERANCE = 1e-9
_MAX_ITERATIONS = 200
_CHUNK = 32_768

Bools = NDArray[np.bool_]


def fit(
    samples: ArrayLike,
    censored: ArrayLike,
    weights: ArrayLike | None = None,
    sigma_min: float = 0.05,
) -> tuple[Floats, Floats]:
    """Fit mu and sigma of `ln X = mu + sigma T` to each group of samples.

    Ties let the likelihood grow without bound as sigma vanishes: sigma is held at `sigma_min` or
    above, and a sigma below a tenth of the standard deviation of ln x is replaced by the scale that
    has this standard deviation (arXiv:2604.00499, labels). A group in which everything is censored
    has no maximum either: its longest sample is taken to have ended exactly at its limit.

    Args:
        samples: Lengths in tokens, (n, k), positive wherever the weight is.
        censored: True where the answer was cut and only `X > sample` is known, (n, k).
        weights: Weight of each sample, (n, k), at least 0; 0 pads ragged groups. Default 1.
        sigma_min: Smallest sigma, above 0.

    Returns:
        mu (n,) and sigma (n,).

    Raises:
        ValueError: Shapes differ, a group has no weight, or a sample or weight is out of range.
    """
    lengths, cut = np.asarray(samples, np.float64), np.asarray(censored, np.bool_)
    weight = np.ones_like(lengths) if weights is None else np.asarray(weights, np.float64)
    _check(lengths, cut, weight, sigma_min)
    log_x = np.log(np.where(weight > 0, lengths, 1.0))
    mu, sigma = np.empty(len(log_x)), np.empty(len(log_x))
    for start in range(0, len(log_x), _CHUNK):
        part = slice(start, start + _CHUNK)
        mu[part], sigma[part] = _fit_chunk(log_x[part], cut[part], weight[part], sigma_min)
    return mu, sigma


def _check(lengths: Floats, cut: Bools, weight: Floats, sigma_min: float) -> None:
    if lengths.ndim != 2 or lengths.shape != cut.shape or lengths.shape != weight.shape:
        raise ValueError(
            "samples, censored and weights must have one shape (groups, samples), got "
            f"{lengths.shape}, {cut.shape} and {weight.shape}"
        )
    if not sigma_min > 0:
        raise ValueError(f"sigma_min is {sigma_min}, must be above 0: ties would collapse sigma")
    for name, bad in (
        ("weight that is negative or not finite", ~(np.isfinite(weight) & (weight >= 0))),
        (
            "sample that is not positive and finite",
            (weight > 0) & ~(np.isfinite(lengths) & (lengths > 0)),
        ),
        ("weight sum of 0; leave the group out", ~(weight > 0).any(axis=1, keepdims=True)),
    ):
        if bad.any():
            raise ValueError(f"group {int(np.argwhere(bad)[0, 0])} has a {name}")


def _fit_chunk(
    log_x: Floats, cut: Bools, weight: Floats, sigma_min: float
) -> tuple[Floats, Floats]:
    total = weight.sum(axis=1)
    mean = (weight * log_x).sum(axis=1) / total
    std = np.sqrt((weight * (log_x - mean[:, None]) ** 2).sum(axis=1) / total)
    hopeless = np.flatnonzero(~((weight > 0) & ~cut).any(axis=1))
    if len(hopeless):
        longest = np.where(weight[hopeless] > 0, log_x[hopeless], -np.inf).argmax(axis=1)
        cut = cut.copy()
        cut[hopeless, longest] = False
    mu, sigma = _ascend(
        log_x, cut, weight, mean, np.maximum(std * _SCALE_OF_STD, sigma_min), sigma_min
    )
    return mu, np.where(sigma < _COLLAPSED * std, std * _SCALE_OF_STD, sigma)


class _Slope(NamedTuple):
    """Log-likelihood and its derivatives by mu / sigma and ln sigma, each (n,)."""

    value: Floats
    by_mu: Floats
    by_scale: Floats
    by_mu_mu: Floats
    by_mu_scale: Floats
    by_scale_scale: Floats


def _ascend(
    log_x: Floats, cut: Bools, weight: Floats, mu: Floats, sigma: Floats, sigma_min: float
) -> tuple[Floats, Floats]:
    """Damped Newton ascent on (mu, ln sigma), all groups in step, finished ones dropped."""
    mu, log_sigma = mu.copy(), np.log(sigma)
    floor = float(np.log(sigma_min))
    damping = np.full(len(mu), 1e-3)
    active = np.arange(len(mu))
    slope = _slope(log_x, cut, weight, mu, log_sigma)
    for _ in range(_MAX_ITERATIONS):
        if not len(active):
            break
        m, s = mu[active], log_sigma[active]
        data = log_x[active], cut[active], weight[active]
        step_mu, step_scale = _step(slope, data[2].sum(axis=1) * damping[active], s <= floor)
        new_m, new_s = m + np.exp(s) * step_mu, np.maximum(s + step_scale, floor)
        trial = _slope(*data, new_m, new_s)
        better = trial.value >= slope.value
        mu[active], log_sigma[active] = np.where(better, new_m, m), np.where(better, new_s, s)
        damping[active] *= np.where(better, 0.1, 10.0)
        going = np.maximum(np.abs(step_mu), np.abs(new_s - s)) > _TOLERANCE
        slope = _Slope(*(np.where(better, t, o)[going] for t, o in zip(trial, slope, strict=True)))
        active = active[going]
    return mu, np.maximum(np.exp(log_sigma), sigma_min)


def _step(slope: _Slope, damping: Floats, at_floor: Bools) -> tuple[Floats, Floats]:
    """Newton step, shifted towards the gradient where the likelihood is not concave."""
    pinned = at_floor & (slope.by_scale <= 0)
    by_scale = np.where(pinned, 0.0, slope.by_scale)
    a, d = -slope.by_mu_mu, -slope.by_scale_scale
    b = np.where(pinned, 0.0, -slope.by_mu_scale)
    least = (a + d) / 2 - np.hypot((a - d) / 2, b)
    shift = damping + np.maximum(0.0, -2 * least)
    a, d = a + shift, d + shift
    determinant = a * d - b * b
    step_mu = (d * slope.by_mu - b * by_scale) / determinant
    step_scale = np.where(pinned, 0.0, (a * by_scale - b * slope.by_mu) / determinant)
    return np.clip(step_mu, -3.0, 3.0), np.clip(step_scale, -1.0, 1.0)


def _slope(log_x: Floats, cut: Bools, weight: Floats, mu: Floats, log_sigma: Floats) -> _Slope:
    r = (log_x - mu[:, None]) / np.exp(log_sigma)[:, None]
    square = NU + r * r
    value = -(NU + 1) / 2 * np.log(square / NU) - log_sigma[:, None]
    score = (NU + 1) * r / square
    curve = (NU + 1) * (NU - r * r) / square**2
    if cut.any():
        beyond = special.stdtr(NU, -r[cut])
        hazard = DENSITY_AT_0 * (square[cut] / NU) ** (-(NU + 1) / 2) / beyond
        curve[cut] = hazard * (hazard - score[cut])
        score[cut] = hazard
        value[cut] = np.log(beyond)
    turn = score + r * curve
    sums = (value, score, r * score - ~cut, -curve, -turn, -r * turn)
    return _Slope(*((weight * s).sum(axis=1) for s in sums))
