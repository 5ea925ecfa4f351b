"""Forecasters of simulated requests, from knowing everything to knowing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.workload import WorkloadError
from jobs.simulating.truth import Truth
from jobs.simulating.widening import Widening
from policies.batch import Floats
from policies.fit import fit
from policies.length_histogram import MAX_TOKENS
from policies.model_lengths import buckets_of
from predictor.messages import Outcome
from predictor.prior import PriorForecaster

Forecaster = Callable[[Truth, np.random.Generator], tuple[Floats, Floats]]
"""mu and sigma of n requests, each (n,), from what is true of them and from random draws."""


class Forecasting(Protocol):
    """Names a forecaster by plain values; any object with this method is one."""

    def learn(self, history: Truth) -> Forecaster:
        """The forecaster after it has seen other requests of the same kind.

        Raises:
            WorkloadError: The workload lacks what the forecast is made of.
        """


def check_coverage(coverage: float) -> None:
    """Refuse a probability outside (0, 1).

    Raises:
        WorkloadError: It is.
    """
    if not 0 < coverage < 1:
        raise WorkloadError(f"coverage is {coverage}, must be above 0 and below 1")


@dataclass(frozen=True, slots=True)
class ExactForecast:
    """The true output length as a point mass."""

    def learn(self, history: Truth) -> Forecaster:
        """Nothing to learn."""

        def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
            return np.log(truth.output_tokens), np.zeros(len(truth.output_tokens))

        return forecast


@dataclass(frozen=True, slots=True)
class OracleForecast:
    """The distribution that the request's length was drawn from, never the length itself."""

    def learn(self, history: Truth) -> Forecaster:
        """Nothing to learn.

        Raises:
            WorkloadError: Only lengths are known.
        """
        history.distribution()
        return lambda truth, random: truth.distribution()


@dataclass(frozen=True, slots=True)
class NoisyForecast:
    """A predictor of given accuracy: the oracle's mu and ln sigma, shrunk and blurred.

    With a true value v of mean m and standard deviation s over the workload, the prediction is
    `m + R2 (v - m) + sqrt(R2 (1 - R2)) s Z`, Z standard normal. Its R2, `1 - SSE / SST`, is R2 in
    expectation, its squared correlation with v too, and it is what a calibrated regression gives:
    the errors are uncorrelated with the prediction. Applied to mu and to ln sigma (the logarithm
    keeps sigma above 0), with independent noise.

    A forecaster that knows its own accuracy also counts the error of mu, of variance
    `(1 - R2) s^2`, into its scale: see `Widening`. Unwidened, the scale is the predicted sigma
    alone, as from a network trained on (mu, sigma) labels by squared error (arXiv:2604.00499), and
    the interval is too narrow.

    Where only lengths are known, mu is the logarithm of the length, the true sigma is 0, and all of
    the forecast's scale is the error of mu. The defaults are the accuracy published for TIE.

    Attributes:
        r2_mu: R2 of mu, in [0, 1].
        r2_sigma: R2 of ln sigma, in [0, 1].
        widened: Whether the scale counts the errors of the prediction.
        coverage: Central interval at which the widened scale is calibrated, in (0, 1).

    Raises:
        WorkloadError: A figure is out of range.
    """

    r2_mu: float = 0.82
    r2_sigma: float = 0.76
    widened: bool = True
    coverage: float = 0.9

    def __post_init__(self) -> None:
        for name in ("r2_mu", "r2_sigma"):
            if not 0 <= getattr(self, name) <= 1:
                raise WorkloadError(
                    f"noisy forecast: {name} is {getattr(self, name)}, must be in 0 to 1"
                )
        check_coverage(self.coverage)

    def learn(self, history: Truth) -> Forecaster:
        """Takes mean and spread of mu and ln sigma from `history`."""
        mu, sigma = history.target()
        blur_mu = _Blur.over(mu, self.r2_mu)
        blur_log_sigma = _Blur.over(np.log(sigma[sigma > 0]), self.r2_sigma)
        widening = Widening(blur_mu.error, blur_log_sigma.error, self.coverage)

        def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
            mu, sigma = truth.target()
            mu_noise, sigma_noise = random.standard_normal((2, len(mu)))
            known = sigma > 0
            predicted = np.zeros(len(mu))
            predicted[known] = np.exp(blur_log_sigma(np.log(sigma[known]), sigma_noise[known]))
            scale = widening(predicted) if self.widened else predicted
            return blur_mu(mu, mu_noise), scale

        return forecast


@dataclass(frozen=True, slots=True)
class _Blur:
    """Predictions of given R2 for values of known mean and standard deviation."""

    mean: float
    std: float
    r2: float

    @classmethod
    def over(cls, values: Floats, r2: float) -> _Blur:
        """For values like these."""
        if not len(values):
            return cls(0.0, 0.0, r2)
        return cls(float(values.mean()), float(values.std()), r2)

    @property
    def error(self) -> float:
        """Standard deviation of the truth about its prediction."""
        return math.sqrt(1 - self.r2) * self.std

    def __call__(self, values: Floats, noise: Floats) -> Floats:
        """Predictions of `values`, (n,), with standard normal `noise`, (n,)."""
        if self.r2 == 1:
            return values
        blur = math.sqrt(self.r2 * (1 - self.r2)) * self.std
        predicted: Floats = self.mean + self.r2 * (values - self.mean) + blur * noise
        return predicted


@dataclass(frozen=True, slots=True)
class RandomForecast:
    """Another request's forecast: distributed as the real ones and worth nothing.

    Requests that are drawn together exchange their forecasts along one random cycle, so that none
    keeps its own.

    Attributes:
        of: Whose forecasts are exchanged.
    """

    of: Forecasting = NoisyForecast()

    def learn(self, history: Truth) -> Forecaster:
        """Learns what `of` learns."""
        base = self.of.learn(history)

        def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
            mu, sigma = base(truth, random)
            cycle = random.permutation(len(mu))
            source = np.empty_like(cycle)
            source[cycle] = np.roll(cycle, 1)
            return mu[source], sigma[source]

        return forecast


@dataclass(frozen=True, slots=True)
class PriorForecast:
    """What is known before anything is predicted: how long such answers have been.

    Attributes:
        by_prompt_length: Fit one log-t per power of two of the prompt's length, as the production
            prior does (`predictor.prior.PriorForecaster`); else one for all requests.
    """

    by_prompt_length: bool = True

    def learn(self, history: Truth) -> Forecaster:
        """Fits to `history`, answers that a cap ended right-censored."""
        if self.by_prompt_length:
            return _prior_by_prompt_length(history)
        fitted = fit(history.output_tokens[None, :], history.cut[None, :])
        mu, sigma = (float(value[0]) for value in fitted)

        def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
            shape = len(truth.prompt_tokens)
            return np.full(shape, mu), np.full(shape, sigma)

        return forecast


def _prior_by_prompt_length(history: Truth) -> Forecaster:
    model = "simulated"
    columns = (history.prompt_tokens, history.output_tokens, history.cut)
    prior = PriorForecaster()
    prior.observe_many(
        [Outcome(model, *row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    )
    # Its forecasts differ by bucket only: ask once per bucket, not once per request.
    prompts = 1 << np.arange(MAX_TOKENS.bit_length())
    forecasts = prior.forecast(model, prompts, np.ones_like(prompts))
    mu = np.array([forecast.mu for forecast in forecasts])
    sigma = np.array([forecast.sigma for forecast in forecasts])

    def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
        bucket = buckets_of(truth.prompt_tokens)
        return mu[bucket], sigma[bucket]

    return forecast
