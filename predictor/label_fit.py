"""The log-t of each prompt, fitted to its sampled lengths, and how far such fits can be trusted."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from policies.batch import Floats, Ints
from policies.fit import Bools, fit
from policies.forecast import DEGREES_OF_FREEDOM as NU
from predictor.labels import Labels

SIGMA_MIN = 0.05
"""Smallest sigma of a fit (arXiv:2604.00499, labels): equal lengths would let it vanish."""

LEAST_SAMPLES = 4
"""Samples that a prompt needs to take part in the split-half reliability: two in each half."""

_SCALE_OF_STD = float(np.sqrt((NU - 2) / NU))
_LOG_DENSITY_AT_0 = float(stats.t.logpdf(0, NU))
_Pair = np.ndarray[tuple[int], np.dtype[np.float64]]
_LEAST_PROMPTS = 3  # a correlation of two is always 1 or -1


@dataclass(frozen=True, slots=True)
class LabelFit:
    """Fits of n prompts and what the samples were like.

    Attributes:
        mu: Location of ln X, (n,).
        sigma: Scale of ln X, (n,).
        samples: Samples of each prompt, (n,).
        cut: Those of them that a cap ended, (n,).
        tied: Prompts with several samples, all of one length, (n,).
        collapsed: Prompts whose sigma is not the likelihood's but the least one or, where ties made
            it collapse, the one that belongs to the standard deviation, (n,).
    """

    mu: Floats
    sigma: Floats
    samples: Ints
    cut: Ints
    tied: Bools
    collapsed: Bools

    def take(self, rows: Ints) -> LabelFit:
        """The fits at these positions."""
        return LabelFit(
            self.mu[rows],
            self.sigma[rows],
            self.samples[rows],
            self.cut[rows],
            self.tied[rows],
            self.collapsed[rows],
        )


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well fits to one half of a prompt's samples agree with fits to the other half.

    The correlation r of the halves, over prompts, is stepped up to the full number of samples by
    Spearman and Brown's formula, `2 r / (1 + r)`. No forecaster can be expected to have an R2
    against the fits that is above it.

    Attributes:
        prompts: Prompts with at least `LEAST_SAMPLES` samples.
        mu: Of mu; NaN with fewer than three prompts.
        sigma: Of sigma; NaN with fewer than three prompts.
    """

    prompts: int
    mu: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The fit of all prompts at once beside scipy's optimiser on one prompt after another.

    Attributes:
        prompts: Prompts that scipy fitted.
        fit_s: Seconds per prompt of the fit of all, in this process.
        scipy_s: Seconds per prompt of scipy.
        mu_difference: Largest difference of mu.
        sigma_difference: Largest difference of sigma.
        fit_better: Prompts where the vectorised fit ended at the higher likelihood, by over 1e-6.
        scipy_better: Prompts where scipy did.
    """

    prompts: int
    fit_s: float
    scipy_s: float
    mu_difference: float
    sigma_difference: float
    fit_better: int
    scipy_better: int

    @property
    def ratio(self) -> float:
        """How many times longer scipy takes per prompt."""
        return self.scipy_s / self.fit_s


def fit_labels(labels: Labels) -> LabelFit:
    """Censored maximum likelihood of mu and sigma for every prompt (`policies.fit`)."""
    present, lengths = labels.present, labels.output_tokens
    mu, sigma = fit(lengths, labels.censored, present.astype(np.float64), SIGMA_MIN)
    samples = present.sum(axis=1)
    tied = (samples > 1) & (np.where(present, lengths, lengths[:, :1]) == lengths[:, :1]).all(
        axis=1
    )
    spread = _std(labels) * _SCALE_OF_STD
    collapsed = np.isclose(sigma, SIGMA_MIN, rtol=1e-9) | np.isclose(sigma, spread, rtol=1e-9)
    return LabelFit(mu, sigma, samples, (labels.censored & present).sum(axis=1), tied, collapsed)


def split_half(labels: Labels, seed: int = 0) -> Reliability:
    """Reliability of the fits, from one random halving of each prompt's samples."""
    rows = np.flatnonzero(labels.present.sum(axis=1) >= LEAST_SAMPLES)
    if len(rows) < _LEAST_PROMPTS:
        return Reliability(len(rows), np.nan, np.nan)
    chosen = labels.take(rows)
    draw = np.random.default_rng(seed).random(chosen.output_tokens.shape)
    order = np.where(chosen.present, draw, np.inf).argsort(axis=1)
    half = chosen.present.sum(axis=1, keepdims=True) // 2
    place = np.arange(order.shape[1])
    lengths = np.take_along_axis(chosen.output_tokens, order, axis=1)
    cut = np.take_along_axis(chosen.censored, order, axis=1)
    halves = [
        fit(lengths, cut, part.astype(np.float64), SIGMA_MIN)
        for part in (place < half, (place >= half) & (place < 2 * half))
    ]
    (mu_a, sigma_a), (mu_b, sigma_b) = halves
    return Reliability(len(rows), _stepped_up(mu_a, mu_b), _stepped_up(sigma_a, sigma_b))


def compare_scipy(labels: Labels, prompts: int, seed: int = 0) -> Comparison:
    """Time the fit of all labels, and scipy's on a random choice of `prompts` of them.

    scipy runs Nelder and Mead's method on (mu, ln sigma) from the same start, sigma held at the
    same floor; its gradient methods are no faster on two parameters. Where ties made sigma
    collapse, both results undergo the same replacement, so that only the optimisers differ.

    Raises:
        ValueError: `prompts` is below 1.
    """
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}, must be >= 1")
    started_s = time.perf_counter()
    fitted = fit_labels(labels)
    fit_s = (time.perf_counter() - started_s) / len(labels)
    random = np.random.default_rng(seed)
    rows = random.choice(len(labels), min(prompts, len(labels)), replace=False)
    chosen = labels.take(rows)
    started_s = time.perf_counter()
    ends = np.array([_scipy_fit(*_samples(chosen, row)) for row in range(len(rows))])
    scipy_s = (time.perf_counter() - started_s) / len(rows)
    std = _std(chosen)
    by_scipy = np.where(ends[:, 1] < 0.1 * std, std * _SCALE_OF_STD, ends[:, 1])
    gain = [
        _log_likelihood(*_samples(chosen, i), fitted.mu[row], np.log(fitted.sigma[row]))
        - _log_likelihood(*_samples(chosen, i), ends[i, 0], np.log(by_scipy[i]))
        for i, row in enumerate(rows)
    ]
    return Comparison(
        prompts=len(rows),
        fit_s=fit_s,
        scipy_s=scipy_s,
        mu_difference=float(np.abs(fitted.mu[rows] - ends[:, 0]).max()),
        sigma_difference=float(np.abs(fitted.sigma[rows] - by_scipy).max()),
        fit_better=int((np.array(gain) > 1e-6).sum()),
        scipy_better=int((np.array(gain) < -1e-6).sum()),
    )


def _std(labels: Labels) -> Floats:
    """Standard deviation of ln x of each prompt, (n,)."""
    weights, logs = labels.weights, np.log(np.maximum(labels.output_tokens, 1))
    mean = (weights * logs).sum(axis=1, keepdims=True)
    std: Floats = np.sqrt((weights * (logs - mean) ** 2).sum(axis=1))
    return std


def _stepped_up(one: Floats, other: Floats) -> float:
    if not (one.std() and other.std()):
        return float(np.nan)
    r = float(np.corrcoef(one, other)[0, 1])
    return 2 * r / (1 + r)


def _samples(labels: Labels, row: int) -> tuple[Floats, Bools]:
    """Logarithms of one prompt's lengths and whether each was cut."""
    present = labels.present[row]
    cut = labels.censored[row, present]
    logs = np.log(labels.output_tokens[row, present])
    if cut.all():  # as in policies.fit: the longest ended exactly at its limit
        cut = cut.copy()
        cut[logs.argmax()] = False
    return logs, cut


def _scipy_fit(logs: Floats, cut: Bools) -> tuple[float, float]:
    floor = float(np.log(SIGMA_MIN))

    def loss(at: _Pair) -> float:
        return -_log_likelihood(logs, cut, float(at[0]), max(float(at[1]), floor))

    spread = max(float(logs.std()) * _SCALE_OF_STD, SIGMA_MIN)
    start: _Pair = np.array([float(logs.mean()), float(np.log(spread))])
    options = {"xatol": 1e-6, "fatol": 1e-9}
    end = optimize.minimize(loss, start, method="Nelder-Mead", options=options)  # type: ignore[call-overload]
    return float(end.x[0]), max(float(np.exp(end.x[1])), SIGMA_MIN)


def _log_likelihood(logs: Floats, cut: Bools, mu: float, log_sigma: float) -> float:
    """Of one prompt's samples, but for a constant."""
    r = (logs - mu) / np.exp(log_sigma)
    ended = -(NU + 1) / 2 * np.log1p(r[~cut] ** 2 / NU) + _LOG_DENSITY_AT_0 - log_sigma
    return float(ended.sum() + np.log(special.stdtr(NU, -r[cut])).sum())
