"""Families of length distributions, fitted to many small samples at once.

Every family keeps the standard deviation of ln X at `LOG_SCALE_MIN` or above (log-t: the t scale),
because the likelihood of samples with ties grows without bound as it vanishes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy import special

from policies.batch import Floats
from policies.fit import fit as fit_log_t
from policies.forecast import DEGREES_OF_FREEDOM

LOG_SCALE_MIN = 0.05
NU_GRID = (1.0, 1.5, 2.0, 2.5, 3.5, 5.0, 8.0, 15.0, 30.0, 100.0)
"""Degrees of freedom among which the log-t with free nu chooses."""

_EM_STEPS = 60
_NEWTON_STEPS = 12
_CHUNK = 8_192


class Family(ABC):
    """A family of distributions of positive lengths; parameters are arrays of shape (n, p)."""

    name: str
    label: str

    @abstractmethod
    def fit(self, lengths: Floats) -> Floats:
        """Maximum-likelihood parameters of each group of lengths (n, k), shape (n, p)."""

    @abstractmethod
    def cdf(self, parameters: Floats, tokens: Floats) -> Floats:
        """P(X <= tokens) for tokens (n, k), shape (n, k)."""

    @abstractmethod
    def survival(self, parameters: Floats, tokens: Floats) -> Floats:
        """P(X > tokens) for tokens (n, k), shape (n, k), without cancellation."""

    @abstractmethod
    def log_quantile(self, parameters: Floats, q: Floats) -> Floats:
        """Ln of the quantiles q (m,), shape (n, m)."""

    @abstractmethod
    def draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        """Random lengths, shape (n, samples)."""


class _LocationScale(Family):
    """`ln X = mu + sigma Z` with parameters (mu, sigma) and a standard Z symmetric around 0."""

    def cdf(self, parameters: Floats, tokens: Floats) -> Floats:
        """See `Family.cdf`."""
        return self._standard_cdf(parameters, self._z(parameters, tokens))

    def survival(self, parameters: Floats, tokens: Floats) -> Floats:
        """See `Family.survival`."""
        return self._standard_cdf(parameters, -self._z(parameters, tokens))

    def log_quantile(self, parameters: Floats, q: Floats) -> Floats:
        """See `Family.log_quantile`."""
        return parameters[:, :1] + parameters[:, 1:2] * self._standard_quantile(parameters, q)

    def draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        """See `Family.draw`."""
        z = self._standard_draw(parameters, samples, rng)
        tokens: Floats = np.exp(np.minimum(parameters[:, :1] + parameters[:, 1:2] * z, 700.0))
        return tokens

    def _z(self, parameters: Floats, tokens: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            z: Floats = (np.log(tokens) - parameters[:, :1]) / parameters[:, 1:2]
        return z

    @abstractmethod
    def _standard_cdf(self, parameters: Floats, z: Floats) -> Floats: ...

    @abstractmethod
    def _standard_quantile(self, parameters: Floats, q: Floats) -> Floats: ...

    @abstractmethod
    def _standard_draw(
        self, parameters: Floats, samples: int, rng: np.random.Generator
    ) -> Floats: ...


class LogT(_LocationScale):
    """The log-t with the fixed nu that the policies use, fitted by `policies.fit`."""

    name = "log_t"
    label = f"log-t, nu = {DEGREES_OF_FREEDOM}"

    def fit(self, lengths: Floats) -> Floats:
        """See `Family.fit`."""
        cut = np.zeros(lengths.shape, np.bool_)
        return np.stack(fit_log_t(lengths, cut, sigma_min=LOG_SCALE_MIN), axis=1)

    def _standard_cdf(self, parameters: Floats, z: Floats) -> Floats:
        return np.asarray(special.stdtr(DEGREES_OF_FREEDOM, z))

    def _standard_quantile(self, parameters: Floats, q: Floats) -> Floats:
        return np.asarray(special.stdtrit(DEGREES_OF_FREEDOM, q))

    def _standard_draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        return rng.standard_t(DEGREES_OF_FREEDOM, (len(parameters), samples))


class LogTFreeNu(_LocationScale):
    """The log-t whose nu is the likeliest of `NU_GRID` for each group; parameters end with nu."""

    name = "log_t_free_nu"
    label = "log-t, free nu"

    def fit(self, lengths: Floats) -> Floats:
        """See `Family.fit`."""
        log_x = np.log(lengths)
        parts = [_fit_t(log_x[start : start + _CHUNK]) for start in range(0, len(log_x), _CHUNK)]
        return np.concatenate(parts)

    def _standard_cdf(self, parameters: Floats, z: Floats) -> Floats:
        return np.asarray(special.stdtr(parameters[:, 2:], z))

    def _standard_quantile(self, parameters: Floats, q: Floats) -> Floats:
        return np.asarray(special.stdtrit(parameters[:, 2:], q))

    def _standard_draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        return rng.standard_t(parameters[:, 2:], (len(parameters), samples))


class LogNormal(_LocationScale):
    """ln X is normal."""

    name = "log_normal"
    label = "log-normal"

    def fit(self, lengths: Floats) -> Floats:
        """See `Family.fit`."""
        log_x = np.log(lengths)
        sigma = np.maximum(log_x.std(axis=1), LOG_SCALE_MIN)
        return np.stack((log_x.mean(axis=1), sigma), axis=1)

    def _standard_cdf(self, parameters: Floats, z: Floats) -> Floats:
        return np.asarray(special.ndtr(z))

    def _standard_quantile(self, parameters: Floats, q: Floats) -> Floats:
        return np.asarray(special.ndtri(q))

    def _standard_draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        return rng.standard_normal((len(parameters), samples))


class Weibull(Family):
    """Parameters (scale, shape)."""

    name = "weibull"
    label = "Weibull"

    def fit(self, lengths: Floats) -> Floats:
        """See `Family.fit`."""
        log_x = np.log(lengths)
        centre = log_x.mean(axis=1, keepdims=True)
        y = log_x - centre
        limit = np.pi / np.sqrt(6) / LOG_SCALE_MIN
        with np.errstate(divide="ignore"):
            start = np.pi / np.sqrt(6) / y.std(axis=1)
        log_shape = np.log(np.minimum(start, limit))
        for _ in range(_NEWTON_STEPS):
            log_shape += np.clip(_weibull_step(y, np.exp(log_shape)), -1.0, 1.0)
            log_shape = np.minimum(log_shape, np.log(limit))
        shape = np.exp(log_shape)
        powers = special.logsumexp(y * shape[:, None], axis=1) - np.log(y.shape[1])
        return np.stack((np.exp(centre[:, 0] + powers / shape), shape), axis=1)

    def cdf(self, parameters: Floats, tokens: Floats) -> Floats:
        """See `Family.cdf`."""
        return -np.expm1(-self._hazard(parameters, tokens))

    def survival(self, parameters: Floats, tokens: Floats) -> Floats:
        """See `Family.survival`."""
        tail: Floats = np.exp(-self._hazard(parameters, tokens))
        return tail

    def log_quantile(self, parameters: Floats, q: Floats) -> Floats:
        """See `Family.log_quantile`."""
        spread = np.log(-np.log1p(-q)) / parameters[:, 1:2]
        logs: Floats = np.log(parameters[:, :1]) + spread
        return logs

    def draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        """See `Family.draw`."""
        drawn = rng.weibull(parameters[:, 1:2], (len(parameters), samples))
        return parameters[:, :1] * drawn

    def _hazard(self, parameters: Floats, tokens: Floats) -> Floats:
        with np.errstate(over="ignore"):
            hazard: Floats = (tokens / parameters[:, :1]) ** parameters[:, 1:2]
        return hazard


class Exponential(Weibull):
    """A Weibull with shape 1."""

    name = "exponential"
    label = "exponential"

    def fit(self, lengths: Floats) -> Floats:
        """See `Family.fit`."""
        return np.stack((lengths.mean(axis=1), np.ones(len(lengths))), axis=1)


class Gamma(Family):
    """Parameters (scale, shape)."""

    name = "gamma"
    label = "gamma"

    def fit(self, lengths: Floats) -> Floats:
        """See `Family.fit`."""
        mean = lengths.mean(axis=1)
        limit = LOG_SCALE_MIN**-2
        gap = np.maximum(np.log(mean) - np.log(lengths).mean(axis=1), 0.5 / limit)
        shape = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
        for _ in range(_NEWTON_STEPS):
            wrong = np.log(shape) - special.digamma(shape) - gap
            slope = 1 / shape - special.polygamma(1, shape)
            shape = np.clip(shape - wrong / slope, shape / 2, shape * 2)
        shape = np.minimum(shape, limit)
        return np.stack((mean / shape, shape), axis=1)

    def cdf(self, parameters: Floats, tokens: Floats) -> Floats:
        """See `Family.cdf`."""
        return np.asarray(special.gammainc(parameters[:, 1:2], tokens / parameters[:, :1]))

    def survival(self, parameters: Floats, tokens: Floats) -> Floats:
        """See `Family.survival`."""
        return np.asarray(special.gammaincc(parameters[:, 1:2], tokens / parameters[:, :1]))

    def log_quantile(self, parameters: Floats, q: Floats) -> Floats:
        """See `Family.log_quantile`."""
        unit = special.gammaincinv(parameters[:, 1:2], q)
        logs: Floats = np.log(parameters[:, :1] * np.maximum(unit, 1e-300))
        return logs

    def draw(self, parameters: Floats, samples: int, rng: np.random.Generator) -> Floats:
        """See `Family.draw`."""
        drawn = rng.standard_gamma(parameters[:, 1:2], (len(parameters), samples))
        return parameters[:, :1] * drawn


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (LogTFreeNu(), LogT(), LogNormal(), Gamma(), Weibull(), Exponential())
}


def _weibull_step(y: Floats, shape: Floats) -> Floats:
    """Newton step of ln shape for `sum(x^k y) / sum(x^k) - 1 / k = 0`, y = ln x centred, (n,)."""
    weight = special.softmax(y * shape[:, None], axis=1)
    first = (weight * y).sum(axis=1)
    second = (weight * y**2).sum(axis=1)
    wrong = first - 1 / shape
    slope = (second - first**2) * shape + 1 / shape
    step: Floats = -wrong / slope
    return step


def _fit_t(log_x: Floats) -> Floats:
    """Profile likelihood over `NU_GRID` by expectation-maximisation, (n, 3)."""
    best = np.full(len(log_x), -np.inf)
    parameters = np.empty((len(log_x), 3))
    for nu in NU_GRID:
        mu, sigma = _em(log_x, nu)
        likelihood = _t_log_likelihood(log_x, mu, sigma, nu)
        better = likelihood > best
        best = np.where(better, likelihood, best)
        found = np.stack((mu, sigma, np.full(len(mu), nu)), axis=1)
        parameters[better] = found[better]
    return parameters


def _em(log_x: Floats, nu: float) -> tuple[Floats, Floats]:
    """Location and scale of the t with `nu` degrees of freedom, each (n,).

    The scale step divides by the weights (parameter-expanded EM: Liu, Rubin and Wu 1998), which
    needs far fewer steps than dividing by the sample size.
    """
    mu, variance = log_x.mean(axis=1), np.maximum(log_x.var(axis=1), LOG_SCALE_MIN**2)
    for _ in range(_EM_STEPS):
        squares = (log_x - mu[:, None]) ** 2
        weight = (nu + 1) / (nu + squares / variance[:, None])
        total = weight.sum(axis=1)
        mu = (weight * log_x).sum(axis=1) / total
        residual = (weight * (log_x - mu[:, None]) ** 2).sum(axis=1) / total
        variance = np.maximum(residual, LOG_SCALE_MIN**2)
    return mu, np.sqrt(variance)


def _t_log_likelihood(log_x: Floats, mu: Floats, sigma: Floats, nu: float) -> Floats:
    constant = special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2) - np.log(nu * np.pi) / 2
    squares = ((log_x - mu[:, None]) / sigma[:, None]) ** 2
    density = constant - (nu + 1) / 2 * np.log1p(squares / nu) - np.log(sigma)[:, None]
    likelihood: Floats = density.sum(axis=1)
    return likelihood


@dataclass(frozen=True, slots=True)
class TokenScores:
    """How well fitted distributions foretell held-out lengths, arrays of shape (n,).

    Attributes:
        log_score: -ln of the probability of the token that came, in nats; lower is better.
        log_crps: Continuous ranked probability score of ln X; lower is better.
    """

    log_score: Floats
    log_crps: Floats


_PROBABILITY_MIN = 1e-12
_CRPS_LEVELS = (np.arange(50) + 0.5) / 50


def token_scores(family: Family, parameters: Floats, tokens: Floats) -> TokenScores:
    """Score parameters (n, p) against one held-out length each, tokens (n,).

    The probability of a token count k is that of (k - 0.5, k + 0.5], cut at 1e-12 from below.
    """
    low, high = np.maximum(tokens[:, None] - 0.5, 0.0), tokens[:, None] + 0.5
    upper_half = family.cdf(parameters, tokens[:, None]) > 0.5
    mass = np.where(
        upper_half,
        family.survival(parameters, low) - family.survival(parameters, high),
        family.cdf(parameters, high) - family.cdf(parameters, low),
    )
    error = np.log(tokens)[:, None] - family.log_quantile(parameters, _CRPS_LEVELS)
    pinball = np.where(error >= 0, _CRPS_LEVELS * error, (_CRPS_LEVELS - 1) * error)
    return TokenScores(
        log_score=-np.log(np.maximum(mass[:, 0], _PROBABILITY_MIN)),
        log_crps=2 * pinball.mean(axis=1),
    )
